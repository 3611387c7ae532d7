"""Show which channels and frequency bands a classifier's score rests on, with controls and pictures.

python launchers/explain.py model_dir=DIR corpus_dir=DIR out_dir=DIR label=diagnosis [finetuned_dir=DIR]
"""

import sys

from mcsp.config import ExplainConfig, parse_command_line


def main() -> None:
    """Parse, explain, print the strongest channels and bands and where the files are."""
    config, _ = parse_command_line(ExplainConfig, __doc__ or "")
    from mcsp.explain.explain import explain
    from mcsp.explain.report import strongest  # after parsing: these imports are heavy

    try:
        results = explain(config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print("\n".join(strongest(results)))
    print(f"numbers: {config.out_dir / 'attribution.json'}")
    print(f"report:  {config.out_dir / 'report.html'}")


if __name__ == "__main__":
    main()
