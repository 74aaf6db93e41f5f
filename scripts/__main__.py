"""`folkmoot TOOL ...`: the tools, each imported only when it is asked for."""

import difflib
import os
import runpy
import sys

from common import __version__
from common.errors import InputError
from common.process import exit_status

# The tools by their names: the module, and what it does.
TOOLS = {
    "quickstart": ("scripts.quickstart", "Start a server and its clients on this machine."),
    "admin": ("scripts.admin", "Show, follow or stop a running server; make join tokens."),
    "dashboard": ("scripts.viewing", "Show runs in a browser."),
    "report": ("scripts.reporting", "Write a run's report: a page, plots and a model card."),
    "show_split": ("scripts.show_split", "Show how the training data would be divided."),
    "make_certs": ("scripts.make_certs", "Make certificates for server, operator and clients."),
    "export": ("scripts.exporting", "Write a run's model in another format, such as ONNX."),
    "verify": ("scripts.serving.verify", "Check an exported model."),
    "predict": ("scripts.predict", "Print what a model makes of pictures, arrays or texts."),
    "serve": ("scripts.serving", "Serve an exported model over HTTP."),
    "perplexity": ("scripts.perplexity", "Print how well a run's model predicts text."),
    "compare": ("scripts.reproduction.compare", "Compare federated and centralised training."),
    "reproduce": ("scripts.reproduction", "Repeat experiments of papers."),
    "tracking": ("scripts.tracking", "Start an MLflow server on this machine."),
    "lesson": ("scripts.teaching", "Open the lesson about federated learning in JupyterLab."),
    "bench": ("scripts.benchmarks", "Measure Folkmoot against the bare work."),
    "chaos": ("scripts.resilience", "Train with real processes while faults strike them."),
}


def main() -> int:
    """Run the tool that the first argument names; return the exit status."""
    return exit_status(_tool)


def _tool() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        width = max(map(len, TOOLS))
        print("Usage: folkmoot TOOL ...\n\nThe tools, each with --help of its own:\n")
        print("\n".join(f"  {tool:<{width}}  {does}" for tool, (_, does) in TOOLS.items()))
        print("\nThe server is folkmoot-server, a client is folkmoot-client.")
    elif name == "--version":
        print(__version__)
    elif name in TOOLS:
        del sys.argv[1]
        _run(TOOLS[name][0])
    else:
        nearest = difflib.get_close_matches(name, TOOLS, 1)
        hint = f"did you mean {nearest[0]}?" if nearest else "folkmoot --help lists the tools"
        raise InputError(f"unknown tool {name!r}; {hint}")
    return 0


def server() -> None:
    """Run `python -m server`."""
    _run("server")


def client() -> None:
    """Run `python -m client`."""
    _run("client")


def _run(module: str) -> None:
    # A folder of the user's that is called server, say, must not run in place of Folkmoot's in
    # the processes that this one starts.
    os.environ["PYTHONSAFEPATH"] = "1"
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.exit(main())
