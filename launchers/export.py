"""``mcsp export`` as a script."""

from mcsp.commands.main import launcher

main = launcher("export")

if __name__ == "__main__":
    raise SystemExit(main())
