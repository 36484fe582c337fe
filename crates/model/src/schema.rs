//! What the texts among the nouns look like, for documents that describe them: names, owners, times, lengths of time.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::instance::Iid;
use crate::name::{NAME_LEN_MAX, SandboxName};
use crate::sandbox::Owner;
use crate::time::{Span, Time};

/// What [`SandboxName`] takes, but for its length.
const NAME_PATTERN: &str = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$";
/// What [`Span::parse`] takes, but for blanks within a number or before it. A zero alone has no unit and is none.
const SPAN_PATTERN: &str = concat!(
    r"^([0-9]+(\.[0-9]+)? ?(nanos|nsec|ns|usec|us|µs|millis|msec|ms|seconds?|secs?|s|minutes?|mins?|m",
    "|hours?|hrs?|h|days?|d|weeks?|wks?|w|months?|M|years?|yrs?|y) ?)+$"
);
/// What an [`Iid`] is read from.
const IID_PATTERN: &str = "^([0-9a-f]{8}|[0-9a-f]{16})-[0-9]+$";

macro_rules! text_schema {
    ($type:ty, $name:literal, $($schema:tt)+) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($($schema)+)
            }
        }
    };
}

text_schema!(SandboxName, "SandboxName", {
    "description": "The name of a sandbox: a DNS label.",
    "type": "string",
    "pattern": NAME_PATTERN,
    "minLength": 1,
    "maxLength": NAME_LEN_MAX,
});

text_schema!(Owner, "Owner", {
    "description": "Who may edit a spec: `api`, or a file as `file:PATH`, relative to the directory of specs.",
    "type": "string",
    "pattern": "^(api|file:[^\\u0000]*)$",
});

text_schema!(Iid, "Iid", {
    "description": "One start of a sandbox: digits of its uid, and the number of the start.",
    "type": "string",
    "pattern": IID_PATTERN,
});

text_schema!(Time, "Time", {
    "description": "A point in time, as RFC 3339 has it, in UTC and to the millisecond.",
    "type": "string",
    "format": "date-time",
});

text_schema!(Span, "Span", {
    "description": "A length of time, such as `10s`, `1m 30s` or `250ms`.",
    "type": "string",
    "pattern": SPAN_PATTERN,
});
