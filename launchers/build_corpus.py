"""``mcsp build`` as a script, for ``ray job submit``."""

from mcsp.commands.main import launcher

main = launcher("build")

if __name__ == "__main__":
    raise SystemExit(main())
