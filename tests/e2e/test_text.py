"""The text tasks as real processes: each client's own folder, and a prediction."""


def test_clients_train_on_folders_of_their_own_and_the_model_predicts(federation):
    for name in ("ada", "grace"):
        (federation.folder / name).mkdir()
        (federation.folder / name / "notes.txt").write_text(f"the value of {name}. " * 200)
    flags = ("--partitioner", "none", "--num-partitions", 2, "--evaluate-every", 0)
    server = federation.server("--rounds", 1, *flags, task="next_word")
    clients = [
        federation.client(number, "--data-dir", federation.folder / name, task="next_word")
        for number, name in enumerate(("ada", "grace"))
    ]
    assert server.wait() == 0, server.text
    assert [client.wait() for client in clients] == [0, 0]
    row = federation.rows[0]
    assert row["global_accuracy"] is None
    assert row["client_metrics"].keys() == {"top3_accuracy"}
    assert row["client_accuracy"] > 0.5
    process = federation.start(
        "scripts.predict", federation.run_dir, "--top", 1, "the value of ada. the"
    )
    assert process.wait() == 0, process.text
    assert process.text.splitlines()[-1].split()[-2] == "value"
