#!/usr/bin/env bash
# jax 0.10.2: `compiler_options` of jax.jit and Lowered.compile take the options of XLA_FLAGS, but of their spellings only
# True and "True". What works in the environment, --xla_cpu_enable_fast_math=true or =1, is refused there, as text and as
# the number 1: "not a valid bool value".
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cat >"$folder/flag.py" <<'END'
import jax

print(jax.jit(lambda x: 2 * x)(1.0))
END
cat >"$folder/options.py" <<'END'
import jax

lowered, taken = jax.jit(lambda x: 2 * x).lower(1.0), {}
for value in ("true", "1", 1, "True", True):
    try:
        lowered.compile(compiler_options={"xla_cpu_enable_fast_math": value})
        taken[repr(value)] = True
    except jax.errors.JaxRuntimeError as error:
        taken[repr(value)] = False
        print(f"compiler_options, {value!r}: {str(error).splitlines()[0]}")
print("jax", jax.__version__, taken)
assert taken == {"'true'": False, "'1'": False, "1": False, "'True'": True, "True": True}, "other spellings are taken"
END
"$folder/venv/bin/python" "$folder/options.py"
for value in true 1 True; do
    XLA_FLAGS="--xla_cpu_enable_fast_math=$value" "$folder/venv/bin/python" "$folder/flag.py" >/dev/null
    echo "XLA_FLAGS, $value: taken"
done
