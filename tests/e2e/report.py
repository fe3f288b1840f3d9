"""The report page in a real browser: it loads alone, draws every chart, and prints.

Pictures are left in the folder given, to be looked at: light, dark, narrow, and the printed pages.

    tests/e2e/report.py build/test_explain [FOLDER]
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

from exe import Checks

PLANS = ["gpt3", "unfit", "single", "wide", "hostile", "illegal"]
VIEWS = [("light", "1100,3600", []),
         ("dark", "1100,3600", ["--blink-settings=preferredColorScheme=0"]),
         ("narrow", "420,4000", [])]


def browse(browser, profile, *arguments):
    done = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu",
                           "--hide-scrollbars", "--user-data-dir=" + profile] + list(arguments),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    return done.stdout.decode("utf-8", "replace")


def background(path):
    """First pixel of a PNG that is not interlaced, 8 bits a channel: what the page is painted with."""
    import struct
    import zlib
    data = open(path, "rb").read()
    packed, at = b"", 8
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at:at + 8])
        if kind == b"IDAT":
            packed += data[at + 8:at + 8 + size]
        at += 12 + size
    return tuple(zlib.decompressobj().decompress(packed, 4)[1:4])


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if not browser:
        print("skipped: there is no chromium here (apt-get install chromium)")
        return 77
    t = Checks()
    with tempfile.TemporaryDirectory() as scratch:
        folder = sys.argv[2] if len(sys.argv) > 2 else scratch
        os.makedirs(folder, exist_ok=True)
        for plan in PLANS:
            page = os.path.join(scratch, plan + ".html")
            with open(page, "wb") as f:
                subprocess.run([sys.argv[1], "--print", plan, "html"], stdout=f, check=True)
            text = open(page, encoding="utf-8").read()
            # What the browser made of it: a parser that repaired something would change counts.
            dom = browse(browser, scratch, "--dump-dom", "file://" + page)
            for tag in ["svg", "rect", "text", "table", "tr", "td", "section"]:
                want = len(re.findall("<%s[ >]" % tag, text))
                got = len(re.findall("<%s[ >]" % tag, dom))
                t.check("%s: %d <%s>" % (plan, want, tag), got == want, "the browser sees %d" % got)
            t.check("%s: no element that names made" % plan, "<b a=" not in dom, "markup got through")
            for name, size, more in VIEWS:
                shot = os.path.join(folder, "%s-%s.png" % (plan, name))
                browse(browser, scratch, "--window-size=" + size, "--screenshot=" + shot, *more,
                       "file://" + page)
                if not t.check("%s: %s picture" % (plan, name), os.path.exists(shot), "none written"):
                    continue
                dark = sum(background(shot)) < 3 * 64
                t.check("%s: %s is %s" % (plan, name, "dark" if dark else "light"),
                        dark == (name == "dark"), "the other way round")
            printed = os.path.join(folder, plan + ".pdf")
            browse(browser, scratch, "--no-pdf-header-footer", "--print-to-pdf=" + printed,
                   "file://" + page)
            t.check("%s: prints" % plan,
                    os.path.exists(printed) and open(printed, "rb").read(5) == b"%PDF-",
                    "no PDF written")
    return t.end()


if __name__ == "__main__":
    sys.exit(main())
