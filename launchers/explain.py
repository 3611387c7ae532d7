"""``mcsp explain`` as a script."""

from mcsp.commands.main import launcher

main = launcher("explain")

if __name__ == "__main__":
    raise SystemExit(main())
