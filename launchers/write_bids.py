"""``mcsp write-bids`` as a script."""

from mcsp.commands.main import launcher

main = launcher("write-bids")

if __name__ == "__main__":
    raise SystemExit(main())
