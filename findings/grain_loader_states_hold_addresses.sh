#!/usr/bin/env bash
# grain 0.2.18: the state of a DataLoader over a data source of one's own class holds Python's default repr, an address.
# Another process that makes the same loader cannot take the state: ValueError. With a __repr__ it can.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet grain==0.2.18
cat > "$folder/loader.py" <<'END'
import sys
from pathlib import Path

import grain


class Squares:
    """A data source as grain's protocol asks for it: __len__ and __getitem__."""

    def __len__(self):
        return 16

    def __getitem__(self, place):
        return place**2


class Named(Squares):
    def __repr__(self):
        return "Named squares"


kind, action, file = {"Squares": Squares, "Named": Named}[sys.argv[1]], sys.argv[2], Path(sys.argv[3])
padding = [object() for _ in range(1000 if action == "save" else 0)]  # as other work before it would do
sampler = grain.samplers.IndexSampler(16, shuffle=True, seed=0, num_epochs=1)
iterator = iter(grain.DataLoader(data_source=kind(), sampler=sampler))
if action == "save":
    first = [int(next(iterator)) for _ in range(3)]
    file.write_bytes(iterator.get_state())
    print(f"{kind.__name__}: read {first}, state saved")
else:
    try:
        iterator.set_state(file.read_bytes())
        print(f"{kind.__name__}: goes on with {int(next(iterator))}")
    except ValueError as error:
        print(f"{kind.__name__}: {type(error).__name__}: {str(error).splitlines()[0][:60]}")
END
for kind in Squares Named; do
    for action in save load; do
        "$folder/venv/bin/python" "$folder/loader.py" "$kind" "$action" "$folder/$kind.state" | tee -a "$folder/seen"
    done
done
grep -q "^Squares: ValueError" "$folder/seen"
grep -q "^Named: goes on with" "$folder/seen"
