"""``mcsp lint`` as a script."""

from mcsp.commands.main import launcher

main = launcher("lint")

if __name__ == "__main__":
    raise SystemExit(main())
