"""The dashboard in a real browser, over run directories that the server's own code wrote."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

import pytest

from common.durable import seal
from server.storage.run_files import Lines
from tests.e2e.harness import Federation
from tests.recorded import begin, client_rows, commit, row

psutil = pytest.importorskip("psutil", reason='needs the extra "full"')

ROOT = Path(__file__).parents[2]
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
# A browser and a server that import much, on a busy machine.
PATIENCE = 240.0
TABS = ("Learning", "Rounds", "Clients", "Classes", "Data", "Settings", "Try it")
MESSAGE = "[data-testid=stAlertContainer]"

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not BROWSER, reason="there is no chromium or google-chrome on the PATH"),
]


@contextmanager
def ended(process):
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@contextmanager
def dashboard_over(folder):
    """Start a dashboard; yield its process, and where it is."""
    command = [sys.executable, "-m", "scripts.viewing", str(folder), "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with ended(process):
        found = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stdout)
        address = next(filter(None, found), None)
        assert address, "it ended before it listened"
        yield process, address.group()


@pytest.fixture(scope="module")
def dashboard(folder):
    with dashboard_over(folder) as started:
        yield started


@pytest.fixture(scope="module")
def url(dashboard):
    return dashboard[1]


@pytest.fixture(scope="module")
def trained(folder):
    """Return a run of digits, two rounds of two clients, that has ended."""
    federation = Federation(folder)
    flags = ("--rounds", 2, "--num-partitions", 2, "--min-clients", 2, "--local-epochs", 3)
    server = federation.server(*flags, task="digits")
    client = federation.client("0-1", task="digits")
    try:
        assert server.wait() == 0, server.text
        assert client.wait() == 0, client.text
    finally:
        for process in (server, client):
            process.end()
    return federation.run_dir


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    # Chromium's sandbox is none for root.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=BROWSER, args=flags, timeout=PATIENCE * 1000
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def context(browser):
    made = browser.new_context(viewport={"width": 1200, "height": 900})
    made.set_default_timeout(PATIENCE * 1000)
    return made


@pytest.fixture
def page(context):
    """Return a page that asks nobody but the dashboard for anything."""
    opened = context.new_page()
    asked = []
    opened.on("request", lambda request: asked.append(request.url))
    yield opened
    opened.close()
    elsewhere = [x for x in asked if not re.match(r"(http|ws)://127\.0\.0\.1:|data:|blob:", x)]
    assert elsewhere == []


def expect(locator):
    from playwright.sync_api import expect as playwright_expect

    playwright_expect.set_options(timeout=PATIENCE * 1000)
    return playwright_expect(locator)


def visit(page, address):
    page.goto(address)
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")


def headline(page, label):
    """Return the value of a headline's number."""
    metric = page.get_by_test_id("stMetric").filter(has=page.get_by_text(label, exact=True))
    return metric.get_by_test_id("stMetricValue")


def cell(page, text):
    """Return a table's cell, of those that a screen reader is told: the others are pixels."""
    return page.locator("[data-testid=stDataFrame] td", has_text=re.compile(f"^{text}$"))


def chart(page, key):
    return page.locator(f".st-key-{key} .js-plotly-plot")


def drawn(page, key, trace):
    """Return the y values of a chart's trace, as Plotly has them in the browser."""
    expect(chart(page, key)).to_be_visible()
    return chart(page, key).evaluate(
        "(plot, name) => Array.from(plot._fullData.find(trace => trace.name === name).y)", trace
    )


def test_the_numbers_on_a_runs_page_are_those_of_its_files(page, url, trained):
    rows = Lines(trained / "metrics.jsonl").all()
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    visit(page, f"{url}/run?run=run")
    best = max(row["global_accuracy"] for row in rows)
    expect(headline(page, "Final accuracy")).to_have_text(f"{rows[-1]['global_accuracy']:.4f}")
    expect(headline(page, "Best accuracy")).to_have_text(f"{best:.4f}")
    expect(headline(page, "Rounds")).to_have_text("2 of 2")
    expect(headline(page, "Clients")).to_have_text("2")
    sent = sum(row["bytes_up"] for row in rows)
    expect(headline(page, "To server")).to_have_text(f"{sent / 1000:.1f} kB")
    server = "server's test set"
    assert drawn(page, "accuracy", server) == [row["global_accuracy"] for row in rows]
    assert drawn(page, "loss", server) == [row["global_loss"] for row in rows]
    page.get_by_role("tab", name="Rounds").click()
    assert drawn(page, "participation", "accepted") == [row["accepted"] for row in rows]
    assert drawn(page, "seconds", "collect") == [row["collect_seconds"] for row in rows]
    page.get_by_role("tab", name="Classes").click()
    expect(chart(page, "confusion")).to_be_visible()
    last = Lines(trained / "evaluations.jsonl").all()[-1]
    cells = chart(page, "confusion").evaluate(
        "plot => Array.from(plot._fullData[0].text, row => Array.from(row))"
    )
    assert [[int(cell) for cell in row] for row in cells] == last["confusion"]
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_the_data_tab_shows_the_division_that_the_clients_made(page, url, trained):
    from scripts.division import parts_of_run

    counts = parts_of_run(json.loads((trained / "config.json").read_text())["options"]).counts
    visit(page, f"{url}/run?run=run&view=Data")
    expect(chart(page, "split")).to_be_visible()
    bars = chart(page, "split").evaluate("plot => plot._fullData.map(bar => Array.from(bar.x))")
    assert bars == counts.T.tolist()


def test_the_model_can_be_tried_on_an_example_a_drawing_and_a_file(page, url, trained, tmp_path):
    from PIL import Image, ImageDraw

    visit(page, f"{url}/run?run=run&view=Try+it")
    expect(chart(page, "probabilities")).to_be_visible()
    expect(page.get_by_text(re.compile(r"^\d with \d"))).to_be_visible()
    page.get_by_text("A drawing").click()
    sheet = page.locator("canvas[aria-label='Sheet to draw on']")
    expect(sheet).to_be_visible()
    expect(chart(page, "probabilities")).to_be_hidden()
    place = sheet.bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + 40)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] - 40, steps=5)
    page.mouse.up()
    expect(chart(page, "probabilities")).to_be_visible()
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(chart(page, "probabilities")).to_be_hidden()
    page.get_by_text("A picture file").click()
    picture = Image.new("L", (80, 80), "white")
    ImageDraw.Draw(picture).line((40, 10, 40, 70), width=12)
    picture.save(tmp_path / "one.png")
    (tmp_path / "none.png").write_text("no picture")
    page.locator("input[type=file]").set_input_files(tmp_path / "one.png")
    expect(page.get_by_text(re.compile(r"^\d with \d"))).to_be_visible()
    page.locator("input[type=file]").set_input_files(tmp_path / "none.png")
    expect(page.locator(MESSAGE)).to_contain_text("no readable picture")


def test_a_live_runs_page_grows_until_the_run_has_ended(page, url, folder):
    run = begin(folder / "live", rounds=3)
    visit(page, f"{url}/run?run=live")
    expect(page.locator(MESSAGE)).to_contain_text("No round is committed yet")
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with ended(process):
        (run / "server.json").write_text(json.dumps({"pid": process.pid}))
        commit(run, 1)
        expect(headline(page, "Rounds")).to_have_text("1 of 3")
        expect(page.get_by_text("running", exact=True)).to_be_visible()
        commit(run, 2)
        expect(headline(page, "Rounds")).to_have_text("2 of 3")
        expect(headline(page, "Latest accuracy")).to_have_text("0.6774")
        assert drawn(page, "accuracy", "server's test set")[-1] == 0.6774
    expect(headline(page, "Final accuracy")).to_have_text("0.6774")
    expect(page.get_by_text("ended", exact=True)).to_be_visible()


def test_damaged_empty_and_half_written_runs_are_shown_with_a_message(page, url, folder):
    begin(folder / "damaged")
    (folder / "damaged" / "config.json").write_text("{")
    half = begin(folder / "half", partitioner="iid", task="tests.tasks:NoSuchTask")
    commit(half, 1)
    for name in ("metrics", "clients", "evaluations"):
        with (half / f"{name}.jsonl").open("a") as file:
            file.write('no json\n[]\n{"round": 2, "confusion": [[1], 2]}\n{"round": 3, "glob')
    visit(page, f"{url}/run?run=damaged")
    expect(page.locator(MESSAGE)).to_contain_text("its config.json is damaged")
    visit(page, url)
    expect(cell(page, "damaged").first).to_be_attached()
    expect(cell(page, "None")).to_have_count(0)
    for tab in TABS:
        visit(page, f"{url}/run?run=half&view={tab}")
        expect(headline(page, "Rounds")).to_have_text("2 of 5")
        expect(page.locator(MESSAGE).first).to_contain_text("damaged lines of its files")
        assert page.get_by_test_id("stException").count() == 0
        assert page.get_by_text("This can't be shown").count() == 0
    visit(page, f"{url}/compare?runs=half&runs=damaged")
    expect(page.locator(MESSAGE)).to_contain_text("its config.json is damaged")
    expect(chart(page, "compared")).to_be_visible()


def test_an_unknown_run_and_a_path_out_of_the_folder_are_none_of_its_runs(page, url, trained):
    for asked in ("none", "../runs/run", "/etc"):
        visit(page, f"{url}/run?run={quote(asked, safe='')}")
        expect(page.locator(MESSAGE)).to_contain_text(f"There is no run {asked} in")
        assert page.get_by_role("tab").count() == 0
    page.get_by_label("Run", exact=True).click()
    page.get_by_role("option", name="run", exact=True).click()
    expect(headline(page, "Rounds")).to_have_text("2 of 2")
    assert page.url.endswith("?run=run")


def test_a_run_of_ones_own_task_says_how_it_can_be_tried(page, url, folder):
    own = begin(folder / "own", task="moons:Moons")
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(seal(config)))
    commit(own, 1)
    (own / "models").mkdir()
    (own / "models" / "global.json").write_text('{"round": 1}')
    visit(page, f"{url}/run?run=own&view=Try+it")
    expect(page.locator(MESSAGE)).to_contain_text(
        "start ./scripts/dashboard again with --task moons:Moons"
    )


def test_committed_rounds_without_a_row_are_told(page, url, folder):
    lost = begin(folder / "lost")
    (lost / "rounds" / "00002").mkdir(parents=True)
    (lost / "rounds" / "00002" / "record.json").touch()
    visit(page, f"{url}/run?run=lost")
    expect(page.locator(MESSAGE)).to_have_text(
        "The last 2 committed rounds left no row in metrics.jsonl."
    )
    commit(lost, 1)
    visit(page, f"{url}/run?run=lost")
    expect(page.locator(MESSAGE)).to_contain_text("The last 1 committed round left no row")


def luminance(colour):
    """Return the relative luminance that WCAG defines, of red, green and blue up to 255."""
    shares = [part / 255 for part in colour]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_counts_of_a_confusion_matrix_are_readable_on_its_fullest_cell(
    browser, url, trained, theme
):
    context = browser.new_context(color_scheme=theme)
    context.set_default_timeout(PATIENCE * 1000)
    page = context.new_page()
    visit(page, f"{url}/run?run=run&view=Classes")
    count = chart(page, "confusion").locator(".textpoint text").first
    expect(count).to_be_visible()
    text = colour(count.evaluate("text => getComputedStyle(text).fill"))
    behind = colour(
        page.get_by_test_id("stApp").evaluate("app => getComputedStyle(app).backgroundColor")
    )
    *blue, share = colour(
        chart(page, "confusion").evaluate("plot => plot._fullData[0].colorscale.at(-1)[1]")
    )
    cell = [share * a + (1 - share) * b for a, b in zip(blue, behind, strict=True)]
    low, high = sorted((luminance(text), luminance(cell)))
    assert (high + 0.05) / (low + 0.05) > 4.5
    context.close()


def colour(text):
    return [float(part) for part in re.findall(r"[\d.]+", text)]


def test_runs_are_listed_and_compared(page, url, folder, trained):
    other = begin(folder / "other", rounds=7, lr=0.5)
    commit(other, 1)
    visit(page, url)
    expect(cell(page, "1 of 7")).to_be_attached()
    expect(cell(page, "other")).to_be_attached()
    # The newest is the first; its row's box opens it.
    place = page.get_by_test_id("stDataFrame").bounding_box()
    page.mouse.click(place["x"] + 17, place["y"] + 52)
    page.wait_for_url("**/run?run=other")
    expect(headline(page, "Rounds")).to_have_text("1 of 7")
    visit(page, f"{url}/compare?runs=other&runs=run")
    assert drawn(page, "compared", "other") == [0.5238]
    assert len(drawn(page, "compared", "run")) == 2
    expect(cell(page, "lr")).to_be_attached()


def test_1000_rounds_of_100_clients_take_the_dashboard_less_than_3_seconds(
    page, dashboard, url, folder
):
    large = begin(folder / "large", rounds=1000)
    numbers = range(1, 1001)
    rows = (asdict(row(number, 100)) for number in numbers)
    own = (line for number in numbers for line in client_rows(number, 100))
    for name, lines in {"metrics": rows, "clients": own}.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (large / f"{name}.jsonl").write_text(text)
    process = psutil.Process(dashboard[0].pid)
    before = process.cpu_times()
    visit(page, f"{url}/run?run=large")
    expect(headline(page, "Rounds")).to_have_text("1000 of 1000")
    assert len(drawn(page, "accuracy", "server's test set")) == 1000
    page.get_by_role("tab", name="Clients").click()
    expect(chart(page, "clients-train_loss")).to_be_visible()
    after = process.cpu_times()
    # Its own seconds, and not the clock's: the browser and others may want the machine, too.
    assert after.user + after.system - before.user - before.system < 3


def test_nothing_is_wider_than_a_narrow_window(browser, url, trained):
    context = browser.new_context(viewport={"width": 400, "height": 800})
    context.set_default_timeout(PATIENCE * 1000)
    page = context.new_page()
    for place in ("", "compare", *(f"run?run=run&view={tab}" for tab in TABS)):
        visit(page, f"{url}/{place}")
        expect(page.get_by_test_id("stMainBlockContainer")).to_be_visible()
        wide = page.evaluate(
            """() => [document.documentElement, document.querySelector("[data-testid=stMain]")]
                     .some(part => part.scrollWidth > window.innerWidth)"""
        )
        assert not wide, place
    context.close()


def test_a_runs_headline_is_one_row_on_a_laptop(browser, url, folder):
    run = begin(folder / "long", rounds=1000)
    commit(run, 1000, 100, bytes_up=999_900_000, bytes_down=999_900_000, duration_seconds=3599)
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(PATIENCE * 1000)
    page = context.new_page()
    visit(page, f"{url}/run?run=long")
    expect(headline(page, "Time")).to_have_text("59 min 59 s")
    tops = {metric.bounding_box()["y"] for metric in page.get_by_test_id("stMetric").all()}
    assert len(tops) == 1
    context.close()


def test_a_folder_without_runs_says_how_to_start_one(context, tmp_path):
    with dashboard_over(tmp_path) as (_, url):
        page = context.new_page()
        visit(page, url)
        expect(page.locator(MESSAGE)).to_contain_text("./scripts/quickstart starts one")
        page.close()


def start(*arguments):
    command = [sys.executable, "-m", "scripts.viewing", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def test_a_run_directory_in_place_of_its_folder_is_wrong_input(trained):
    done = start(trained)
    assert done.returncode == 2
    assert done.stderr.endswith(
        f"name the folder that holds it: ./scripts/dashboard {trained.parent}\n"
    )


def test_a_folder_that_is_not_there_is_wrong_input_whatever_the_port(url, tmp_path):
    done = start(tmp_path / "nowhere", "--port", url.rpartition(":")[2])
    assert done.returncode == 2
    assert done.stderr == (
        f"error: there is no folder {tmp_path / 'nowhere'}; name the one that holds the runs\n"
    )


def test_a_port_in_use_is_wrong_input(url, folder):
    port = url.rpartition(":")[2]
    done = start(folder, "--port", port)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --port: {port} can't be used: Address already in use")
