"""Evaluate an export on a labelled corpus or BIDS folders: probes beside their baselines, retrieval, one report.

python launchers/evaluate.py --config configs/evaluate/demo.yaml model_dir=DIR corpus_dir=DIR out_dir=DIR \\
    label=diagnosis        # or bids_root=DIR in place of corpus_dir
"""

import sys

from mcsp.config import EvaluateConfig, parse_command_line


def main() -> None:
    """Parse, evaluate, print the table and where the files are."""
    config, _ = parse_command_line(EvaluateConfig, __doc__ or "")
    from mcsp.evaluate.evaluate import evaluate  # after parsing: a typing error should not wait for heavy imports
    from mcsp.evaluate.report.tables import terminal_table

    try:
        results = evaluate(config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(terminal_table(results))
    print(f"results: {config.out_dir / 'results.json'}")
    print(f"report:  {config.out_dir / 'report.html'}")


if __name__ == "__main__":
    main()
