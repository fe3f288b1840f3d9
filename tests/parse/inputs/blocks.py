"""Writes the ```dsm blocks of a page to files 1.dsm, 2.dsm, ... and looks for every key of keys.def in it."""
import re
import sys

page, keys, folder = sys.argv[1:]
text = open(page).read()
blocks = re.findall(r"```dsm\n(.*?)```", text, re.S)
for i, block in enumerate(blocks, 1):
    open(f"{folder}/{i}.dsm", "w").write(block)
missing = []
for key, kind in re.findall(r'^KEY\("[^"]*",\s*"([^"]*)",\s*(\w+)', open(keys).read(), re.M):
    if f"`{key.removesuffix('*')}" not in text and key != "*":
        missing.append(key)
print(len(blocks), "blocks,", len(missing), "keys missing", *missing)
