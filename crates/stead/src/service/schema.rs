//! JSON schemas of services' types, for the OpenAPI document.

use serde_json::{Map, Value};
#[cfg(feature = "schemars")]
use {
    super::process::{Never, Process},
    schemars::generate::{SchemaGenerator, SchemaSettings},
    schemars::{JsonSchema, Schema, json_schema},
    std::borrow::Cow,
};

/// The JSON schemas of a service's types, as far as they are known. A type without a schema is any JSON in the OpenAPI
/// document.
///
/// With the feature `schemars`, which the crate `stead-gateway` enables, [`schemars`] generates them from
/// `#[derive(stead::schemars::JsonSchema)]` with `#[schemars(crate = "stead::schemars")]` on the types:
///
/// ```ignore
/// impl Process for Account {
///     fn schemas() -> Option<Schemas> { Some(Schemas::of::<Self>()) }
/// }
/// ```
///
/// A service of which some types have no schema lists the others: `Schemas::default().request::<Request>()`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schemas {
    /// Schema of [`Process::Request`](crate::Process::Request).
    pub request: Option<Value>,
    /// Schema of [`Process::Reply`](crate::Process::Reply).
    pub reply: Option<Value>,
    /// Schema of [`Process::Error`](crate::Process::Error).
    pub error: Option<Value>,
    /// Schema of [`Process::Query`](crate::Process::Query).
    pub query: Option<Value>,
    /// Schema of [`Process::Answer`](crate::Process::Answer).
    pub answer: Option<Value>,
    /// Definitions to which they refer as `#/$defs/NAME`, by name.
    pub definitions: Map<String, Value>,
}

#[cfg(feature = "schemars")]
impl Schemas {
    /// Returns the schemas of all types of a service.
    #[must_use]
    pub fn of<P: Process>() -> Self
    where
        P::Request: JsonSchema,
        P::Reply: JsonSchema,
        P::Error: JsonSchema,
        P::Query: JsonSchema,
        P::Answer: JsonSchema,
    {
        Self::default()
            .request::<P::Request>()
            .reply::<P::Reply>()
            .error::<P::Error>()
            .query::<P::Query>()
            .answer::<P::Answer>()
    }

    /// Sets the schema of requests.
    #[must_use]
    pub fn request<T: JsonSchema>(mut self) -> Self {
        self.request = Some(self.schema::<T>(false));
        self
    }

    /// Sets the schema of replies.
    #[must_use]
    pub fn reply<T: JsonSchema>(mut self) -> Self {
        self.reply = Some(self.schema::<T>(true));
        self
    }

    /// Sets the schema of errors.
    #[must_use]
    pub fn error<T: JsonSchema>(mut self) -> Self {
        self.error = Some(self.schema::<T>(true));
        self
    }

    /// Sets the schema of queries.
    #[must_use]
    pub fn query<T: JsonSchema>(mut self) -> Self {
        self.query = Some(self.schema::<T>(false));
        self
    }

    /// Sets the schema of answers to queries.
    #[must_use]
    pub fn answer<T: JsonSchema>(mut self) -> Self {
        self.answer = Some(self.schema::<T>(true));
        self
    }

    fn schema<T: JsonSchema>(&mut self, is_sent: bool) -> Value {
        let settings = SchemaSettings::draft2020_12();
        let settings = if is_sent { settings.for_serialize() } else { settings.for_deserialize() };
        let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
        if let Value::Object(schema) = &mut schema {
            schema.remove("$schema");
            if let Some(Value::Object(more)) = schema.remove("$defs") {
                self.definitions.extend(more);
            }
        }
        schema
    }
}

/// Any JSON that the gateway accepts: `#[schemars(with = "stead::Json")]` on a field of the type [`serde_json::Value`].
/// Integers have 64 bits at most.
#[cfg(feature = "schemars")]
#[derive(Clone, Copy, Debug)]
pub enum Json {}

#[cfg(feature = "schemars")]
impl JsonSchema for Json {
    fn schema_name() -> Cow<'static, str> {
        "Json".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let json = generator.subschema_for::<Self>();
        json_schema!({
            "description": "Any JSON; integers have 64 bits at most",
            "anyOf": [
                { "type": ["null", "boolean", "string"] },
                { "type": "integer", "minimum": i64::MIN, "maximum": u64::MAX },
                { "type": "number" },
                { "type": "array", "items": json },
                { "type": "object", "additionalProperties": json },
            ],
        })
    }
}

#[cfg(feature = "schemars")]
impl JsonSchema for Never {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Never".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        false.into()
    }
}
