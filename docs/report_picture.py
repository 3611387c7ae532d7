"""Picture of the evaluation's report in the documentation: its part "In short", as a browser shows it.

``python docs/report_picture.py demo_output/evaluation/report.html`` writes docs/images/evaluation-report.png; it needs
Chromium.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OUT = Path(__file__).parent / "images" / "evaluation-report.png"
WIDTH, HEIGHT = 1280, 720


def main(report: Path) -> None:
    """Leave out what comes before the verdict, and photograph the page's top."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("error: expected Chromium, found none")
    head, begin, rest = report.read_text(encoding="utf-8").partition("<h2>In short</h2>")
    if not begin:
        raise SystemExit(f"error: {report}: expected a report with a part In short, found none")
    style = "<style>body { margin-top: 0 } h2 { margin-top: .4rem !important }</style>"
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(head.partition("<body>")[0] + f"{style}<body>" + begin + rest, encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
        subprocess.run([browser, *options, f"--screenshot={OUT}", page.as_uri()], check=True, capture_output=True)
    print(OUT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
