#!/usr/bin/env bash
# no_shared_symbols.sh NM OBJECT...: fails if an object defines a weak or unique symbol, which a linker may take from
# any ISA's copy and so run, say, AVX-512 code on a CPU without it.
set -euo pipefail
nm=$1
shift
[ $# -gt 0 ] || { echo "no objects to check"; exit 1; }
symbols=$("$nm" --demangle --defined-only "$@")
if grep -E '^[0-9a-f]+ [WVu] ' <<<"$symbols"; then
  echo "the symbols above have vague linkage"
  exit 1
fi
echo "checked $# objects"
