"""Both directions between facerec's RecordIO and mxnet's on the same records, for scripts/interop_mxnet.

One file, two roles: the plain call runs under facerec's Python and starts itself again with ``--peer`` under
mxnet's, which has neither facerec nor a current NumPy. Both make the same records from the same seed.
"""

import argparse
import hashlib
import json
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

MAGIC = struct.pack("<I", 0xCED7230A)
MAGIC_NUMBER = 0xCED7230A


def payloads(random_numbers, count):
    """Bytes of all lengths, with many magic numbers and pieces of them, so that many are cut into parts."""
    pieces = [MAGIC, MAGIC, MAGIC[:1], MAGIC[:2], MAGIC[2:], b"\0\0\0\0", b"face", b"\xff\xd8\xff"]
    fixed = [
        b"",
        MAGIC,
        MAGIC * 3,
        b"a" + MAGIC,
        b"abcd" + MAGIC,
        MAGIC + b"a",
        MAGIC[:3],
        b"ab" + MAGIC * 2 + b"cd",
    ]
    made = [
        b"".join(random_numbers.choice(pieces) for _ in range(random_numbers.randrange(40)))
        for _ in range(count)
    ]
    large = [bytes(random_numbers.getrandbits(8) for _ in range(70_001)) + MAGIC * 2, bytes(1 << 20)]
    return fixed + made + large


def packs():
    """Name to list of (key, flag, label, id, id2, payload): what both sides write."""
    numbers = random.Random(19920)
    every = payloads(numbers, 300)
    scalar = [(key, 0, float(key % 7), key, 0, data) for key, data in enumerate(every)]
    several = []
    for key, data in enumerate(every):
        label = [round(numbers.uniform(-9, 9) * 64) / 64 for _ in range(numbers.randrange(1, 9))]
        several.append((key, len(label), label, numbers.getrandbits(64), numbers.getrandbits(64), data))
    magic = [
        (key, 0, 3.0, MAGIC_NUMBER, MAGIC_NUMBER << 32 | key, data) for key, data in enumerate(every[:60])
    ]
    keys = numbers.sample(range(1 << 40), len(every))
    sparse = [(key, 0, -2.5, 2**64 - 1, 1, data) for key, data in zip(keys, every, strict=True)]
    insightface = [(0, 2, [9.0, 12.0], 0, 0, b"")]
    insightface += [(key, 0, float((key - 1) // 3), key, 0, every[key]) for key in range(1, 9)]
    insightface += [
        (key, 2, [3.0 * (key - 9) + 1, min(3.0 * (key - 9) + 4, 9.0)], key, 0, b"") for key in (9, 10, 11)
    ]
    return {
        "scalar_labels": scalar,
        "several_labels": several,
        "magic_in_headers": magic,
        "sparse_unordered_keys": sparse,
        "insightface_layout": insightface,
    }


def sequences():
    """Name to payloads without image headers or index."""
    return {"raw_sequence": payloads(random.Random(7), 200)}


def told(flag, label, id_, id2, payload):
    """One record in JSON, labels as float32 bits."""
    labels = [float(one) for one in label] if flag else [float(label)]
    bits = [struct.pack("<f", one).hex() for one in labels]
    return [int(flag), bits, str(int(id_)), str(int(id2)), len(payload), hashlib.sha256(payload).hexdigest()]


# mxnet's side ----------------------------------------------------------------------------------------------


def peer(folder):
    """Write everything into folder/mxnet, and tell what is read from folder/ours."""
    import numpy
    from mxnet import __version__, recordio

    for name, records in packs().items():
        base = str(folder / "mxnet" / name)
        writer = recordio.MXIndexedRecordIO(base + ".idx", base + ".rec", "w")
        for key, flag, label, id_, id2, payload in records:
            header = recordio.IRHeader(flag, numpy.array(label, "float32") if flag else label, id_, id2)
            writer.write_idx(key, recordio.pack(header, payload))
        writer.close()
    for name, records in sequences().items():
        writer = recordio.MXRecordIO(str(folder / "mxnet" / (name + ".rec")), "w")
        for payload in records:
            writer.write(payload)
        writer.close()
    read = {"version": __version__, "numpy": numpy.__version__}
    for name in packs():
        base = str(folder / "ours" / name)
        reader = recordio.MXIndexedRecordIO(base + ".idx", base + ".rec", "r")
        read[name] = {}
        for key in reader.keys:
            header, payload = recordio.unpack(reader.read_idx(key))
            read[name][str(key)] = told(header.flag, header.label, header.id, header.id2, payload)
    for name, records in sequences().items():
        reader = recordio.MXRecordIO(str(folder / "ours" / (name + ".rec")), "r")
        read[name] = [hashlib.sha256(reader.read()).hexdigest() for _ in records]
        assert reader.read() is None, "more records than were written"
    (folder / "peer.json").write_text(json.dumps(read))


# Our side --------------------------------------------------------------------------------------------------


def write_ours(folder):
    from facerec.packs.recordio import Record, RecordWriter

    for name, records in packs().items():
        with RecordWriter(folder / f"{name}.rec") as writer:
            for key, flag, label, id_, id2, payload in records:
                writer.write(key, Record(flag, tuple(label) if flag else label, id_, id2, payload))
    for name, payloads_ in sequences().items():
        with RecordWriter(folder / f"{name}.rec") as writer:
            for key, payload in enumerate(payloads_):
                writer.write(key, payload)


def check(name, what, right):
    """Print one line of the report; returns whether it is right."""
    print(f"  {'ok   ' if right else 'WRONG'} {name:24} {what}")
    return right


def compare(folder, read):
    from facerec.packs import framing
    from facerec.packs.recordio import RecordReader

    results = []
    for name, records in packs().items():
        expected = {str(key): told(*rest) for key, *rest in records}
        ours, theirs = folder / "ours" / name, folder / "mxnet" / name
        for ending in (".rec", ".idx"):
            equal = ours.with_suffix(ending).read_bytes() == theirs.with_suffix(ending).read_bytes()
            size = theirs.with_suffix(ending).stat().st_size
            results.append(check(name, f"{ending} identical to mxnet's, {size:,} bytes", equal))
        with RecordReader(theirs.with_suffix(".rec")) as reader:
            found = {str(key): told(*reader[key]) for key in reader.keys.tolist()}
            cut = sum(
                framing.part(reader.view, offset)[0] != framing.WHOLE for offset in reader.offsets.tolist()
            )
        results.append(
            check(
                name,
                f"mxnet -> facerec: {len(found)} records equal, {cut} of several parts",
                found == expected,
            )
        )
        results.append(
            check(name, f"facerec -> mxnet: {len(read[name])} records equal", read[name] == expected)
        )
    for name, payloads_ in sequences().items():
        expected_hashes = [hashlib.sha256(payload).hexdigest() for payload in payloads_]
        ours, theirs = folder / "ours" / f"{name}.rec", folder / "mxnet" / f"{name}.rec"
        results.append(check(name, ".rec identical to mxnet's", ours.read_bytes() == theirs.read_bytes()))
        with RecordReader(theirs) as reader:
            hashes = [hashlib.sha256(raw).hexdigest() for _, raw in reader.raw_records()]
        results.append(
            check(name, f"mxnet -> facerec: {len(hashes)} records equal", hashes == expected_hashes)
        )
        results.append(
            check(name, f"facerec -> mxnet: {len(read[name])} equal", read[name] == expected_hashes)
        )
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mxnet-python", help="a Python that has mxnet 1.9.1")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer(options.peer)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side in ("ours", "mxnet"):
            (folder / side).mkdir()
        write_ours(folder / "ours")
        subprocess.run([options.mxnet_python, "-W", "ignore", __file__, "--peer", name], check=True)
        read = json.loads((folder / "peer.json").read_text())
        print(f"facerec <-> mxnet {read['version']} (NumPy {read['numpy']})")
        results = compare(folder, read)
    print(f"{sum(results)} of {len(results)} comparisons are right")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
