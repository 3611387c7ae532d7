"""``mcsp evaluate`` as a script."""

from mcsp.commands.main import launcher

main = launcher("evaluate")

if __name__ == "__main__":
    raise SystemExit(main())
