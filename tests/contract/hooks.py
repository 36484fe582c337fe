"""What Schemathesis is told beside the document: names that exist, and what only this host knows of a request that the document allows."""

import re
import zlib

import schemathesis

# As run declares them. One more is made by whoever puts it.
NAMES = ["one", "two", "three", "four"]

# Of what the document allows, what is refused all the same: by what this host has and allows, by two fields that do not go together, and
# by what counts bytes or milliseconds where a schema counts characters.
REFUSALS = re.compile(
    r"no image |is not one of .*(bash|node)|is required by image|is weaker than|host needs|is above |could not start"
    r"|is missing, and no image|must be more than 0|is shorter than initial|is longer than|is not a duration"
    r"|lies below another file|is empty, too long|longer than 255 bytes|names an empty program|names no program"
    r"|bytes with its (name|variables)|bytes with its variables and the environment"
)
# Operations whose bodies are texts of another language.
OPAQUE = {"apply"}


def is_valid(case):
    return case.meta is not None and case.meta.generation.mode.is_positive


@schemathesis.hook
def before_call(context, case, kwargs):
    """Three requests of four are about a sandbox that there is; none deletes it. Sequences have names of their own."""
    if not is_valid(case):
        return
    for field in set(case.path_parameters) & {"name", "id"} if case.meta.phase.name != "stateful" else ():
        value = case.path_parameters[field]
        draw = zlib.crc32(str(value).encode())
        if case.method == "DELETE":
            case.path_parameters[field] = "nobody" if value in NAMES else value
        elif draw % 4 > 0 or case.method == "PUT":
            case.path_parameters[field] = NAMES[draw % len(NAMES)]
    # What a document says twice it says alike.
    if case.operation.definition.raw.get("operationId") == "putSandbox":
        case.body["metadata"]["name"] = case.path_parameters["name"]


@schemathesis.check
def what_is_described_is_taken(context, response, case):
    """In the place of the check of that kind, which knows statuses alone."""
    if not is_valid(case) or response.status_code not in (400, 413, 415, 422):
        return
    if case.operation.definition.raw.get("operationId") in OPAQUE:
        return
    answer = response.json()
    # It was tried and came to nothing, or there is nothing that could be.
    if answer["code"] in ("failed", "no_command"):
        return
    faults = [fault["message"] for fault in answer.get("violations", [])] or [answer["error"]]
    unexplained = [fault for fault in faults if not REFUSALS.search(fault)]
    if unexplained:
        raise AssertionError(f"the document allows it, and it is refused: {'; '.join(unexplained)}")
