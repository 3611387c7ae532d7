"""``mcsp VERB``: one command for everything, its verbs found without importing what they need.

Cyclopts does the parsing, because it alone of the libraries that were tried keeps verbs as names until one is called,
completes words in bash, zsh, fish and PowerShell, suggests what was meant, and leaves the values to the schema. Tyro
and jsonargparse convert values themselves, by rules other than those of our YAML files.
"""

import re
import sys
from collections.abc import Callable, Sequence

from cyclopts import App, Group, Parameter
from cyclopts.exceptions import CycloptsError

from mcsp.version import __version__

# Group of the help -> verb -> where it is in mcsp.commands, and a line about it; in the order of the help.
VERBS: dict[str, dict[str, tuple[str, str]]] = {
    "Corpus": {
        "write-bids": ("corpus:write_bids", "Write BIDS derivatives from a table of files."),
        "build": ("corpus:build", "Build a corpus from BIDS datasets."),
        "status": ("corpus:status", "Progress of a build."),
        "lint": ("corpus:lint", "Re-read a corpus and compare it with its index."),
        "report": ("corpus:report", "Write report.html of a corpus again."),
    },
    "Pretraining": {
        "pretrain": ("pretrain:pretrain", "Pretrain on a corpus."),
        "plot": ("pretrain:plot", "Draw a pretraining run."),
        "export": ("pretrain:export", "Export a checkpoint: weights that load without DeepSpeed."),
    },
    "Use of an export": {
        "encode": ("recordings:encode", "Encode recordings: a table of features."),
        "evaluate": ("recordings:evaluate", "Compare an export with its baselines on labelled recordings."),
        "finetune": ("recordings:finetune", "Fine-tune an export and test it on new subjects or sites."),
        "predict": ("recordings:predict", "Classify recordings: a table of classes and probabilities, or of numbers."),
        "explain": ("recordings:explain", "Show the channels and bands that a classifier uses."),
    },
    "Trying it out": {
        "demo": ("demo:demo", "Run all stages on small data: sites, corpus, pretraining, export, evaluation."),
        "demo-sites": ("demo:demo_sites", "Write the demo's BIDS datasets, or a simulated consortium."),
    },
}
# Of pyproject.toml, by verb; the others need "corpus".
EXTRAS = {
    **dict.fromkeys(("encode", "predict"), "lab"),
    **dict.fromkeys(("evaluate", "finetune", "explain"), "lab,evaluate"),
    **dict.fromkeys(("pretrain", "plot", "export"), "train"),
    "demo": "corpus,train,evaluate",
}
# Clients of object stores, whose errors are of no class that all share.
_STORES = ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "adlfs", "azure")
# ``--model.size nano`` and ``--sites.berlin.path=DIR`` are keys of a section: the schema judges them, as key=value.
_SECTION = re.compile(r"--([A-Za-z_][\w-]*\.[\w.-]+)(?:=(.*))?", re.DOTALL)


def application(called: str = "") -> App:
    """The command and its verbs; no module of a verb is imported before it is ``called``, nor shown at length."""
    app = _app("mcsp", "Pretraining on fMRI and EEG of many sites, and classification with the exported weights.")
    for number, (title, verbs) in enumerate(VERBS.items()):
        group = Group(title, sort_key=number)
        for place_in_group, (verb, (place, text)) in enumerate(verbs.items()):
            shown = None if verb == called else text
            app.command(f"mcsp.commands.{place}", name=verb, group=group, help=shown, sort_key=place_in_group)
    app.register_install_completion_command(help="Make the shell complete verbs, keys and choices.")
    return app


def _app(name: str, text: str | None = None) -> App:
    return App(
        name=name, help=text, version=__version__, help_format="plaintext", default_parameter=Parameter(negative=()),
        result_action="return_value",
    )  # fmt: skip


def run(argv: Sequence[str] | None = None, app: App | None = None) -> int:
    """Run a command line; the status is that of the verb, or 2 after one line on bad input.

    Args:
        argv: verb and arguments; None: those of the process.
        app: another application than ``mcsp``.
    """
    words: list[str] = []
    try:
        words = _words(sys.argv[1:] if argv is None else argv)
        app = app or application(words[0] if words else "")
        found = app(words, print_error=False, exit_on_error=False)
    except (CycloptsError, ValueError, OSError) as error:
        return _refused(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "mcsp").startswith("mcsp"):
            raise
        extra = EXTRAS.get(words[0] if words else "", "corpus")
        remedy = f"; expected what an extra brings: pip install 'mcsp-pretraining[{extra}]'"
        return _refused(f"{error}{'' if 'pip install' in str(error) else remedy}")
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _STORES:
            raise
        return _refused(f"{error}; expected an object store that answers, and credentials of it (for S3 AWS_*)")
    return found if isinstance(found, int) else 0


def _refused(text: str) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return 2


def run_alone(command: Callable[..., int], name: str) -> int:
    """A command that is no verb of ``mcsp``, on the arguments of the process; otherwise as :func:`run`."""
    app = _app(name)
    app.default(command)
    return run(app=app)


def launcher(verb: str) -> Callable[..., int]:
    """A verb as a function of its arguments, for scripts: ``launcher("lint")(["corpus"])``."""
    return lambda argv=None: run([verb, *(sys.argv[1:] if argv is None else argv)])


def main() -> None:
    """What ``mcsp`` runs."""
    raise SystemExit(run())


def _words(argv: Sequence[str]) -> list[str]:
    """Without what the deepspeed launcher adds, and keys of sections as key=value."""
    words: list[str] = []
    left = iter(argv)
    for word in left:
        section = _SECTION.fullmatch(word)
        if word.startswith("--local_rank="):
            continue
        if section is None:
            words.append(word)
            continue
        key, value = section.groups()
        value = next(left, None) if value is None else value
        if value is None:
            raise ValueError(f"--{key}: expected a value after it, found none")
        words.append(f"{key}={value}")
    return words
