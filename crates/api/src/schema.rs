//! What cannot be said by a type alone: texts that a kernel takes, and that no request says null. And the schema for
//! editors.

use schemars::generate::SchemaSettings;
use schemars::transform::transform_subschemas;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::document::Document;
use sodium_model::Span;
use sodium_model::arguments::WORD_BYTES_MAX;
use sodium_model::draft::FILE_PATH_BYTES_MAX;

/// Without a NUL byte.
const WORD_PATTERN: &str = r"^[^\u0000]*$";
/// A name that an environment can hold.
const VARIABLE_PATTERN: &str = r"^[^=\u0000]+$";
/// Parts between `/`, each of 255 characters at most, none of them empty, `.` or `..`.
const FILE_PATTERN: &str = concat!(
    r"^([^/.\u0000][^/\u0000]{0,254}|\.[^/.\u0000][^/\u0000]{0,253}|\.\.[^/\u0000]{1,253})",
    r"(/([^/.\u0000][^/\u0000]{0,254}|\.[^/.\u0000][^/\u0000]{0,253}|\.\.[^/\u0000]{1,253}))*$"
);

/// The schema of a sandbox document, for editors: of a draft that all of them know.
pub fn editor() -> Value {
    let settings = SchemaSettings::draft07().for_deserialize();
    let mut schema = settings.into_generator().into_root_schema_for::<Document>();
    schema.insert("title".to_owned(), "A sandbox of sodiumd".into());
    schema.to_value()
}

/// A text that the kernel takes as an argument or a path.
pub(crate) fn word(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "pattern": WORD_PATTERN})
}

/// Several of them.
pub(crate) fn words(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": word(generator)})
}

/// A program and its arguments, taken as they are.
pub(crate) fn program(_: &mut SchemaGenerator) -> Schema {
    let item = json!({"type": "string", "pattern": WORD_PATTERN, "maxLength": WORD_BYTES_MAX});
    json_schema!({"type": "array", "minItems": 1, "items": item})
}

/// What an environment can hold.
pub(crate) fn env(_: &mut SchemaGenerator) -> Schema {
    // Beside a name of one letter, and `=`.
    let value = json!({"type": "string", "pattern": WORD_PATTERN, "maxLength": WORD_BYTES_MAX - 2});
    json_schema!({
        "type": "object",
        "propertyNames": {"pattern": VARIABLE_PATTERN},
        "additionalProperties": value,
    })
}

/// Paths in a workspace, and contents.
pub(crate) fn files(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "propertyNames": {"pattern": FILE_PATTERN, "maxLength": FILE_PATH_BYTES_MAX},
        "additionalProperties": {"type": "string"},
    })
}

pub(crate) fn absolute_path(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "pattern": r"^/[^\u0000]*$"})
}

/// Whether a client waits, and for how long.
pub(crate) fn wait(generator: &mut SchemaGenerator) -> Schema {
    let span = Span::json_schema(generator);
    json_schema!({
        "type": "string",
        "anyOf": [
            {"enum": ["", "0", "1", "false", "true"]},
            {"pattern": span.get("pattern")},
        ],
    })
}

/// A field that is not meant is left out: null is none of its values.
pub(crate) fn never_null(schema: &mut Schema) {
    transform_subschemas(&mut never_null, schema);
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [name] = types.as_slice() {
            let name = name.clone();
            schema.insert("type".to_owned(), name);
        }
    }
    if let Some(Value::Array(words)) = schema.get_mut("enum") {
        words.retain(|word| !word.is_null());
    }
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.retain(|choice| choice["type"] != "null");
        if let [Value::Object(choice)] = choices.as_slice() {
            let choice = choice.clone();
            schema.remove("anyOf");
            choice.into_iter().for_each(|(key, value)| drop(schema.insert(key, value)));
        }
    }
}

/// What is to run has an image or a command.
pub(crate) fn has_command(schema: &mut Schema) {
    let choices = json!([
        {"required": ["image"]},
        {"required": ["command"], "properties": {"command": {"minItems": 1}}},
        {"required": ["state"], "properties": {"state": {"enum": ["stopped", "hibernated"]}}},
    ]);
    schema.insert("anyOf".to_owned(), choices);
}
