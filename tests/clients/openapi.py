"""Holds what the control API said to its document: `openapi.py DOCUMENT EXCHANGES`.

EXCHANGES is a list of `{"way", "method", "path", "status", "type", "request", "body"}`, where the bodies are text (a
request's may be null). An unknown path or status, a type or body that the document doesn't have, a request that was
taken and shouldn't be valid, and a GET that nobody tried are told, and fail.
"""

import json
import re
import sys
import urllib.parse

import jsonschema
import openapi_spec_validator

FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER


class Document:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.whole = json.load(file)
        openapi_spec_validator.validate(self.whole)

    def resolved(self, part):
        while "$ref" in part and part["$ref"].startswith("#/components/responses/"):
            part = self.whole["components"]["responses"][part["$ref"].rsplit("/", 1)[1]]
        return part

    def operations(self):
        return {
            (method.upper(), path): operation
            for path, operations in self.whole["paths"].items()
            for method, operation in operations.items()
        }

    def find(self, method, target):
        """The operation that answers `method` at `target`; a path without a parameter goes first."""
        path = target.partition("?")[0]
        for (known, template), operation in sorted(self.operations().items(), key=lambda each: "{" in each[0][1]):
            pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
            if known == method and re.fullmatch(pattern, path):
                return (known, template), operation
        return None, None

    def wrong(self, schema, value):
        """What is wrong with `value` by `schema`."""
        # Its references lead to parts of the document, so those come along.
        whole = {"components": self.whole["components"], "allOf": [schema]}
        validator = jsonschema.Draft202012Validator(whole, format_checker=FORMATS)
        error = jsonschema.exceptions.best_match(validator.iter_errors(value))
        if error is None:
            return []
        return [f"{error.json_path}: {error.message[:600]}"]

    def wrong_answer(self, operation, exchange):
        response = operation["responses"].get(str(exchange["status"]))
        if response is None:
            return [f"status {exchange['status']} isn't documented: {exchange['body'][:200]}"]
        kind = exchange["type"].partition(";")[0].strip()
        media = self.resolved(response)["content"].get(kind)
        if media is None:
            return [f"status {exchange['status']} isn't documented as `{kind}`"]
        if "x-itemSchema" in media:
            lines = [json.loads(line) for line in exchange["body"].splitlines()]
            return [wrong for line in lines for wrong in self.wrong(media["x-itemSchema"], line)]
        body = json.loads(exchange["body"]) if kind == "application/json" else exchange["body"]
        return self.wrong(media["schema"], body)

    def wrong_request(self, operation, exchange):
        """What the server took has to be what the document says that it takes."""
        if exchange["status"] >= 300:
            return []
        wrong = []
        known = {each["name"]: each for each in operation.get("parameters", []) if each["in"] == "query"}
        query = dict(urllib.parse.parse_qsl(exchange["path"].partition("?")[2]))
        wrong += [f"parameter `{name}` isn't documented" for name in query if name not in known]
        for name, each in known.items():
            if each.get("required") and name not in query:
                wrong.append(f"parameter `{name}` is documented as required")
        body = operation.get("requestBody")
        if body is not None:
            schema = body["content"]["application/json"]["schema"]
            wrong += [f"request: {each}" for each in self.wrong(schema, json.loads(exchange["request"]))]
        return wrong


def main():
    document = Document(sys.argv[1])
    with open(sys.argv[2], encoding="utf-8") as file:
        exchanges = json.load(file)
    wrong, tried, lines = [], {}, {}
    for exchange in exchanges:
        method, path = exchange["method"], exchange["path"]
        which, operation = document.find(method, path)
        if which is None:
            wrong.append(f"{method} {path}: isn't documented")
            continue
        found = document.wrong_answer(operation, exchange) + document.wrong_request(operation, exchange)
        wrong += [f"{exchange['way']}: {method} {path}: {exchange['status']}: {each}" for each in found]
        tried.setdefault(which, set()).add(exchange["status"])
        if exchange["type"].startswith("application/x-ndjson") and exchange["body"]:
            lines[which] = True
    for which, operation in document.operations().items():
        if which[0] == "GET" and 200 not in tried.get(which, ()):
            wrong.append(f"{' '.join(which)}: never answered 200")
        if "application/x-ndjson" in operation["responses"]["200"]["content"] and which not in lines:
            wrong.append(f"{' '.join(which)}: never had a line")
    for each in wrong:
        print(each)
    untried = sorted(" ".join(which) for which in document.operations() if 200 not in tried.get(which, ()))
    print(f"{len(exchanges)} exchanges, {len(wrong)} wrong; never answered 200: {', '.join(untried) or 'none'}")
    sys.exit(bool(wrong))


main()
