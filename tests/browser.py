"""Pages in a real browser, if one is installed."""

import re
import shutil
import subprocess

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def command(folder, *options):
    """A browser that may not write to the home directory, and finds no sandbox in a container."""
    home = f"--user-data-dir={folder / 'profile'}"
    return [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", home, *options]


def measured(page, width, script, folder):
    """The numbers of a list that a script computes in a page, in a frame of that width.

    A window of a browser has a least width of its own, so the page is in a frame. Writes into `folder`.
    """
    ask = f"""<script>addEventListener("load", () => {{ {script}
        parent.postMessage(numbers.map(Math.round).join(" "), "*"); }})</script></body>"""
    asking, frame = page.with_name(f"asking-{page.name}"), folder / "frame.html"
    asking.write_text(page.read_text().replace("</body>", ask))
    frame.write_text(
        '<title>waits</title><script>addEventListener("message", e => { document.title = "found " + e.data; })'
        f'</script><iframe src="{asking.as_uri()}" style="width: {width}px; height: 900px; border: 0"></iframe>'
    )
    options = "--window-size=1400,1000", "--virtual-time-budget=10000", "--dump-dom", frame.as_uri()
    done = subprocess.run(command(folder, *options), capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>found ([-\d ]+)</title>", done.stdout)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    return [int(number) for number in found[1].split()]
