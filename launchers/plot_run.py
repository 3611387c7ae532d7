"""``mcsp plot`` as a script."""

from mcsp.commands.main import launcher

main = launcher("plot")

if __name__ == "__main__":
    raise SystemExit(main())
