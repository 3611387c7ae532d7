"""``mcsp report`` as a script."""

from mcsp.commands.main import launcher

main = launcher("report")

if __name__ == "__main__":
    raise SystemExit(main())
