//! What a daemon under test answers, held against the OpenAPI document: each status, each kind of body, each field.

use std::sync::LazyLock;

use serde_json::Value;

static DOCUMENT: LazyLock<Value> = LazyLock::new(sodium_api::openapi::document);

/// What a schema may say that is nothing to be checked, or is checked by who made it.
const SAYINGS: &[&str] =
    &["description", "default", "examples", "format", "pattern", "propertyNames"];

/// One answer.
pub struct Answered<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub status: u16,
    /// Of the body, as its header says.
    pub media: &'a str,
    pub text: &'a str,
}

/// Fails if the document does not say that this may be answered.
#[track_caller]
pub fn check(answered: &Answered) {
    if let Some(fault) = fault(answered) {
        let Answered { method, path, status, text, .. } = answered;
        panic!("{method} {path}: {status}: {fault}: {text}");
    }
}

fn fault(answered: &Answered) -> Option<String> {
    let error = serde_json::json!({"$ref": "#/components/schemas/ErrorBody"});
    let path = answered.path.split('?').next().unwrap_or_default();
    let operation = operation(&answered.method.to_lowercase(), path);
    let Some(operation) = operation else {
        // Of no route, or of another method.
        let is_error = matches!(answered.status, 400 | 401 | 404 | 405 | 408 | 413 | 429 | 503);
        let text: Value = serde_json::from_str(answered.text).unwrap_or_default();
        return if is_error {
            mismatch(&error, &text, "")
        } else {
            Some("is not described".into())
        };
    };
    let response = &operation["responses"][answered.status.to_string()];
    if response.is_null() {
        return Some("the status is not described".into());
    }
    let media = answered.media.split(';').next().unwrap_or_default();
    let content = &resolve(response)["content"];
    let schema = match &content[media] {
        Value::Null if content.is_null() => return None,
        Value::Null => return Some(format!("{media:?} is not described")),
        described => &described["schema"],
    };
    match media {
        "application/json" => match serde_json::from_str(answered.text) {
            Ok(value) => mismatch(schema, &value, ""),
            Err(error) => Some(error.to_string()),
        },
        "application/x-ndjson" => answered
            .text
            .lines()
            .find_map(|line| mismatch(schema, &serde_json::from_str(line).unwrap_or_default(), "")),
        _ => None,
    }
}

/// What is said of a path and a method, the path with the fewest parameters first.
fn operation(method: &str, path: &str) -> Option<&'static Value> {
    let parts: Vec<&str> = path.split('/').collect();
    let fits = |template: &&String| {
        let known: Vec<&str> = template.split('/').collect();
        let same = |(known, part): (&&str, &&str)| known.starts_with('{') || known == part;
        known.len() == parts.len() && known.iter().zip(&parts).all(same)
    };
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let template = paths.keys().filter(fits).min_by_key(|path| path.matches('{').count())?;
    paths[template].get(method)
}

fn resolve(value: &Value) -> &Value {
    match value["$ref"].as_str() {
        Some(path) => DOCUMENT.pointer(&path[1..]).unwrap_or_else(|| panic!("{path} is nowhere")),
        None => value,
    }
}

/// Why a value is not what a schema says, or nothing. Knows the words that the document uses, and no other.
pub fn mismatch(schema: &Value, value: &Value, at: &str) -> Option<String> {
    let Value::Object(rules) = schema else {
        assert_eq!(schema, true, "no schema");
        return None;
    };
    rules.iter().find_map(|(rule, want)| {
        let choices = || want.as_array().unwrap().iter().map(|one| mismatch(one, value, at));
        let is_wrong = match rule.as_str() {
            "$ref" => return mismatch(resolve(schema), value, at),
            "oneOf" => choices().filter(Option::is_none).count() != 1,
            "anyOf" => choices().all(|fault| fault.is_some()),
            "type" => !is_of(want, value),
            "const" => value != want,
            "enum" => !want.as_array().unwrap().contains(value),
            "minimum" => value.is_number() && value.as_f64() < want.as_f64(),
            "maximum" => value.is_number() && value.as_f64() > want.as_f64(),
            "maxLength" => value.as_str().map(|text| text.chars().count() as u64) > want.as_u64(),
            "minLength" => value.as_str().is_some_and(str::is_empty),
            "minItems" => value.as_array().is_some_and(Vec::is_empty),
            "maxProperties" => value.as_object().map(|map| map.len() as u64) > want.as_u64(),
            "items" => {
                let items = value.as_array().into_iter().flatten().enumerate();
                return items
                    .into_iter()
                    .find_map(|(n, one)| mismatch(want, one, &format!("{at}[{n}]")));
            }
            "required" => want
                .as_array()
                .unwrap()
                .iter()
                .any(|name| value.get(name.as_str().unwrap()).is_none()),
            "properties" | "additionalProperties" | "patternProperties" => {
                return fields(rule, schema, value, at);
            }
            said => {
                assert!(SAYINGS.contains(&said), "{said} is not known here");
                false
            }
        };
        is_wrong.then(|| format!("{at}: {value} is not of {rule} {want}"))
    })
}

fn fields(rule: &str, schema: &Value, value: &Value, at: &str) -> Option<String> {
    let is_named = |name: &str| !schema["properties"][name].is_null();
    let others = !schema["patternProperties"].is_null();
    value.as_object().into_iter().flatten().find_map(|(name, field)| {
        let at = format!("{at}.{name}");
        match rule {
            "properties" if is_named(name) => mismatch(&schema[rule][name], field, &at),
            "patternProperties" if !is_named(name) => {
                let all = schema[rule].as_object().unwrap().values();
                all.into_iter().find_map(|pattern| mismatch(pattern, field, &at))
            }
            "additionalProperties" if !is_named(name) && !others => match &schema[rule] {
                Value::Bool(false) => Some(format!("{at} is not described")),
                other => mismatch(other, field, &at),
            },
            _ => None,
        }
    })
}

fn is_of(kinds: &Value, value: &Value) -> bool {
    let is = |kind: &Value| match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other} is no type"),
    };
    kinds.as_array().map_or_else(|| is(kinds), |kinds| kinds.iter().any(is))
}
