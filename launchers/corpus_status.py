"""``mcsp status`` as a script."""

from mcsp.commands.main import launcher

main = launcher("status")

if __name__ == "__main__":
    raise SystemExit(main())
