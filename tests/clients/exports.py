"""Opens exports as their readers do. Prints what it saw, fails where one can't be read.

Usage: exports.py lines SCHEMA FILE | csv FILE | cast FILE
"""

import csv
import json
import sys

import jsonschema


def lines(schema, file):
    """Every line is what a JSON Schema says."""
    with open(schema, encoding="utf-8") as opened:
        schema = json.load(opened)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    count, wrong = 0, 0
    with open(file, encoding="utf-8", newline="\n") as opened:
        for line in opened:
            count += 1
            value = json.loads(line)
            error = jsonschema.exceptions.best_match(validator.iter_errors(value))
            if error is not None:
                wrong += 1
                print(f"line {count}: {error.json_path}: {error.message[:300]}")
    print(f"{count} lines, {wrong} wrong")
    return count > 0 and wrong == 0


def table(file):
    """As Python reads it and spreadsheets would: as many cells in each row as in the heading, none of them a formula."""
    with open(file, encoding="utf-8", newline="") as opened:
        text = opened.read()
    rows = list(csv.reader(text.splitlines(keepends=True), strict=True))
    heading, rows = rows[0], rows[1:]
    fine = all(len(row) == len(heading) for row in rows)
    acts = [cell for row in rows for cell in row if cell.strip()[:1] in {*"=+-@"}]
    for row in rows:
        values = [cell.removeprefix("'") for cell in row]
        print(json.dumps(dict(zip(heading, values))))
    return fine and not acts and not text.startswith("\ufeff")


def cast(file):
    """asciicast v2: a header, then events of growing times."""
    with open(file, encoding="utf-8", newline="\n") as opened:
        header, *events = [json.loads(line) for line in opened]
    assert header["version"] == 2 and header["width"] > 0 and header["height"] > 0, header
    assert isinstance(header["timestamp"], int), header
    last = 0
    for time, code, data in events:
        assert isinstance(time, (int, float)) and time >= last, (time, last)
        assert code == "o" and isinstance(data, str) and data, (code, data)
        # Escapes that colour are ours; nothing else acts on a terminal.
        bare = data.replace("\r\n", "").replace("\x1b[", "")
        assert bare.isprintable(), data
        last = time
    print(f"{len(events)} events in {last} s")
    return len(events) > 0


def main():
    way, *arguments = sys.argv[1:]
    fine = {"lines": lines, "csv": table, "cast": cast}[way](*arguments)
    sys.exit(not fine)


main()
