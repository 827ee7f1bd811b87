//! The OpenAPI document of a node: the document of the routes, with a path for each service of the node and its
//! schemas.

use super::problem::Kind;
use serde_json::{Map, Value, json};
use stead::{Registry, Schemas, Topology};

/// The routes that are written out for each service.
const OF_SERVICE: [&str; 2] = ["/v1/call/{service}/{key}", "/v1/query/{service}/{key}"];

/// Returns the completed document of the routes, without services.
pub(super) fn describe(document: utoipa::openapi::OpenApi) -> Value {
    let mut document = serde_json::to_value(document).expect("a description made by macros: always JSON");
    for (_, _, operation) in operations(&mut document) {
        complete_parameters(operation);
        let responses = &mut operation["responses"];
        for (range, what) in
            [("4XX", "The request is refused"), ("5XX", "The request cannot be answered now")]
        {
            if responses[range].is_null() {
                responses[range] = problem(what, json!({ "$ref": "#/components/schemas/Problem" }));
            }
        }
    }
    document
}

/// Adds paths and schemas for each service.
pub(super) fn add_services(document: &mut Value, topology: &Topology, registry: &Registry) {
    let names: Vec<&str> = topology.services().iter().map(|service| service.name.as_str()).collect();
    let generic = OF_SERVICE.map(|path| {
        let paths = document["paths"].as_object_mut().expect("an OpenAPI document has paths");
        (path, paths.remove(path).expect("the routes have these paths"))
    });
    for name in &names {
        let schemas = registry.schemas(name).unwrap_or_default();
        let own = add_schemas(document, name, schemas);
        for (path, item) in &generic {
            let mut item = item.clone();
            let is_call = path.contains("/call/");
            let methods = item.as_object_mut().expect("a path has methods");
            for (method, operation) in methods.iter_mut() {
                specialise(operation, name, method, is_call, &own);
            }
            document["paths"][path.replace("{service}", name)] = item;
        }
    }
    for (_, _, operation) in operations(document) {
        for parameter in parameters(operation) {
            if parameter["name"] == "service" {
                parameter["schema"]["enum"] = json!(names);
            }
        }
    }
}

fn operations(document: &mut Value) -> impl Iterator<Item = (&String, &String, &mut Value)> {
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    paths.flat_map(|(path, item)| {
        let methods = item.as_object_mut().into_iter().flatten();
        methods.map(move |(method, operation)| (path, method, operation))
    })
}

fn parameters(operation: &mut Value) -> impl Iterator<Item = &mut Value> {
    operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten()
}

/// Completes the schemas that the macros write for parameters: an absent parameter is left out, never null, and integer
/// formats get explicit bounds, which tools that read schemas need.
fn complete_parameters(operation: &mut Value) {
    for parameter in parameters(operation) {
        let schema = &mut parameter["schema"];
        if let Some(types) = schema["type"].as_array_mut() {
            types.retain(|name| name != "null");
            if let [one] = &types[..] {
                schema["type"] = one.clone();
            }
        }
        let is_32 = schema["format"] == "int32";
        if (is_32 || schema["format"] == "int64") && schema["maximum"].is_null() {
            schema["maximum"] = if is_32 { json!(u32::MAX) } else { json!(u64::MAX) };
        }
    }
}

fn problem(what: &str, schema: Value) -> Value {
    json!({ "description": what, "content": { "application/problem+json": { "schema": schema } } })
}

/// Adds the schemas of a service, and returns references to them by name.
fn add_schemas(document: &mut Value, service: &str, schemas: Schemas) -> Map<String, Value> {
    let Schemas { request, reply, error, query, answer, definitions } = schemas;
    let components = &mut document["components"]["schemas"];
    let mut own = Map::new();
    let named =
        [("Request", request), ("Reply", reply), ("Error", error), ("Query", query), ("Answer", answer)];
    for (name, mut schema) in named.into_iter().filter_map(|(name, schema)| Some((name, schema?))) {
        rename(&mut schema, service);
        let component = format!("{service}.{name}");
        own.insert(name.to_owned(), json!({ "$ref": format!("#/components/schemas/{component}") }));
        components[component] = schema;
    }
    for (name, mut schema) in definitions {
        rename(&mut schema, service);
        components[format!("{service}.types.{name}")] = schema;
    }
    own
}

/// Changes references to a schema's own definitions into references to the document's.
fn rename(schema: &mut Value, service: &str) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, service)),
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(to) if name == "$ref" => {
                        if let Some(name) = to.strip_prefix("#/$defs/") {
                            *to = format!("#/components/schemas/{service}.types.{name}");
                        }
                    }
                    member => rename(member, service),
                }
            }
        }
        _ => {}
    }
}

/// Turns an operation on any service into one on this service.
fn specialise(operation: &mut Value, service: &str, method: &str, is_call: bool, own: &Map<String, Value>) {
    let what = if is_call { "call" } else { "query" };
    operation["operationId"] = json!(format!("{what}_{service}_{method}"));
    operation["tags"] = json!([service]);
    if let Some(parameters) = operation["parameters"].as_array_mut() {
        parameters.retain(|parameter| parameter["name"] != "service");
    }
    let (asked, answered) = if is_call { ("Request", "Reply") } else { ("Query", "Answer") };
    let json = |schema: &Value| json!({ "application/json": { "schema": schema } });
    if let Some(schema) = own.get(asked) {
        if operation["requestBody"].is_object() {
            operation["requestBody"]["content"] = json(schema);
        }
        for parameter in parameters(operation) {
            if parameter["name"] == "query" {
                parameter["content"] = json(schema);
                let parameter = parameter.as_object_mut().expect("a parameter is an object");
                parameter.retain(|member, _| !matches!(member.as_str(), "schema" | "example"));
            }
        }
    }
    if let Some(schema) = own.get(answered) {
        operation["responses"]["200"]["content"] = json(schema);
    }
    if let Some(schema) = own.get("Error") {
        let error = json!({ "properties": { "error": schema } });
        let schema = json!({ "allOf": [{ "$ref": "#/components/schemas/Problem" }, error] });
        let status = Kind::HandlerError.status().as_u16().to_string();
        operation["responses"][status] =
            problem("The service's own error is in `error`; or the token is refused", schema);
    }
}
