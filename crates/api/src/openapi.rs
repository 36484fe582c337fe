//! The OpenAPI 3.1 document, made of the table of routes and of the types that it names.
//!
//! What is answered and what is asked for are described by generators of their own: an answer says each field that it
//! always has, a request says each field that it needs.

use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::error::ErrorBody;
use crate::query::PowerVerb;
use crate::routes::{Access, Answer, Body, Header, JSON, ROUTES, Route};

/// Where the schemas of all types are.
const SCHEMAS: &str = "#/components/schemas";

/// What each status means, of those that say that something went wrong.
const ERRORS: &[(u16, &str)] = &[
    (400, "It cannot be understood."),
    (401, "Neither a token nor a ticket that is good."),
    (403, "Another user than root and the daemon's own, at the local socket."),
    (404, "There is no such sandbox."),
    (408, "The body did not come in time."),
    (409, "Something is in the way."),
    (410, "The changes since that version are not remembered."),
    (413, "The body is larger than 4 MiB."),
    (422, "Well formed and wrong, or it was tried and came to nothing."),
    (429, "Asked more often than is served, or as many are open as there may be."),
    (500, "The daemon's own fault."),
    (503, "Not now: the store or the program takes nothing, or all connections are in use."),
    (504, "The wait is over; see the code."),
    (507, "The disk is full; nothing was changed."),
];

/// The whole document.
pub fn document() -> Value {
    let settings =
        || SchemaSettings::draft2020_12().with(|own| own.definitions_path = SCHEMAS[1..].into());
    let mut of = Generators {
        answers: settings().for_serialize().into_generator(),
        requests: settings().for_deserialize().into_generator(),
    };
    let mut paths = Map::new();
    for route in ROUTES {
        let entry = paths.entry(route.path).or_insert_with(|| json!({}));
        entry[route.method.as_str()] = operation(route, &mut of);
    }
    let error = of.answers.subschema_for::<ErrorBody>();
    let schemas = of.into_schemas();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "sodiumd",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Sandboxes on one Linux machine, declared.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "query_token": {"type": "apiKey", "in": "query", "name": "token"},
                "ticket": {"type": "apiKey", "in": "query", "name": "ticket"},
            },
            "responses": responses(&error),
            "schemas": schemas,
        },
    })
}

struct Generators {
    answers: SchemaGenerator,
    requests: SchemaGenerator,
}

impl Generators {
    /// All types by name. One that is both asked for and answered has to be the same in both.
    fn into_schemas(mut self) -> Map<String, Value> {
        let mut all = self.answers.take_definitions(true);
        for (name, schema) in self.requests.take_definitions(true) {
            if let Some(known) = all.insert(name.clone(), schema.clone()) {
                assert!(known == schema, "{name} means two things");
            }
        }
        all
    }
}

fn operation(route: &Route, of: &mut Generators) -> Value {
    let mut operation = json!({
        "operationId": route.id,
        "summary": route.summary,
        "responses": answers(route, of),
    });
    match route.access {
        Access::Token => (),
        Access::Socket => {
            operation["security"] = json!([{"token": []}, {"query_token": []}, {"ticket": []}]);
        }
        Access::Open => operation["security"] = json!([]),
    }
    let parameters = parameters(route, of);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(Body { media, schema, is_optional }) = route.body {
        let schema =
            schema.map_or_else(|| json!({"type": "string"}), |make| value(make(&mut of.requests)));
        operation["requestBody"] =
            json!({"required": !is_optional, "content": {media: {"schema": schema}}});
    }
    if !route.frames.is_empty() {
        let frames: Vec<Value> =
            route.frames.iter().map(|make| value(make(&mut of.requests))).collect();
        operation["x-client-frames"] = json!({"anyOf": frames});
    }
    operation
}

fn answers(route: &Route, of: &mut Generators) -> Value {
    let mut all = json!({});
    for Answer { status, means, media, schema } in route.answers {
        let entry = &mut all[status.to_string()];
        if entry.is_null() {
            *entry = json!({"description": means});
        }
        let schema = schema.map(|make| value(make(&mut of.answers)));
        if media.is_empty() {
            if let Some(schema) = schema {
                entry["x-daemon-frames"] = schema;
            }
            continue;
        }
        let schema = schema.unwrap_or_else(|| json!({"type": "string"}));
        entry["content"][*media] = json!({"schema": schema});
    }
    for (status, _) in ERRORS.iter().filter(|(status, _)| can_fail(route, *status)) {
        let entry = &mut all[status.to_string()];
        if entry.is_null() {
            *entry = json!({"$ref": format!("#/components/responses/{status}")});
        } else {
            entry["content"][JSON] = json!({"schema": {"$ref": format!("{SCHEMAS}/ErrorBody")}});
        }
    }
    all
}

/// Whether a route can be answered with this status when something goes wrong. Most of it follows from what it takes.
fn can_fail(route: &Route, status: u16) -> bool {
    let is_of_one = route.path.contains('{');
    let follows = match status {
        // Whoever asks, and wherever.
        403 | 429 | 503 => true,
        400 => is_of_one || route.query.is_some() || route.body.is_some(),
        401 => route.access != Access::Open,
        404 => is_of_one,
        // A body is read of whatever needs a token, before anything else is looked at.
        408 | 413 => route.access == Access::Token,
        422 => route.body.is_some(),
        _ => false,
    };
    follows || route.errors.contains(&status)
}

fn parameters(route: &Route, of: &mut Generators) -> Vec<Value> {
    let mut all: Vec<Value> = route
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| match name {
            "verb" => {
                let verb = value(of.requests.subschema_for::<PowerVerb>());
                json!({"name": name, "in": "path", "required": true, "schema": verb})
            }
            _ => json!({"name": name, "in": "path", "required": true,
                "description": "The name of a sandbox, or its uid.", "schema": {"type": "string", "minLength": 1}}),
        })
        .collect();
    all.extend(route.headers.iter().map(|Header { name, means, value }| {
        let mut schema = json!({"type": "string"});
        if let Some(value) = value {
            schema["const"] = json!(value);
        }
        json!({"name": name, "in": "header", "description": means, "schema": schema})
    }));
    if let Some(make) = route.query {
        all.extend(of_query(make, of));
    }
    all
}

/// The fields of a type, as parameters. The type itself is no schema of the document.
fn of_query(make: crate::routes::Make, of: &mut Generators) -> Vec<Value> {
    let reference = value(make(&mut of.requests));
    let name =
        reference["$ref"].as_str().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    let schema = of.requests.definitions_mut().remove(name).unwrap_or_default();
    let fields = schema["properties"].as_object().cloned().unwrap_or_default();
    fields
        .into_iter()
        .map(|(name, mut schema)| {
            let means = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            json!({"name": name, "in": "query", "description": means, "schema": schema})
        })
        .collect()
}

/// What goes wrong, once for each status.
fn responses(error: &Schema) -> Value {
    let one = |(status, means): &(u16, &str)| {
        let content = json!({JSON: {"schema": error}});
        (status.to_string(), json!({"description": means, "content": content}))
    };
    Value::Object(ERRORS.iter().map(one).collect())
}

fn value(schema: Schema) -> Value {
    schema.to_value()
}
