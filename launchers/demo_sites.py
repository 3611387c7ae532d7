"""``mcsp demo-sites`` as a script."""

from mcsp.commands.main import launcher

main = launcher("demo-sites")

if __name__ == "__main__":
    raise SystemExit(main())
