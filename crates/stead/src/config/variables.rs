//! The keys of a configuration, and the variables that set them.

use crate::config::similar::nearest;
use toml::Value;

/// Prefix of the variables. Variables that an orchestrator sets for a service named `stead` begin with `STEAD_`.
pub(super) const PREFIX: &str = "STEAD_CFG_";
/// Prefix of earlier versions. Only variables that the configuration knows are read.
pub(super) const PREFIX_OLD: &str = "STEAD_";
/// Variables that the command line reads.
pub(super) const OTHERS: [&str; 3] = ["STEAD_ADDR", "STEAD_CONFIG", "STEAD_LISTEN"];
/// Keys with a value at the top level.
const TOP: [&str; 8] = [
    "data_dir",
    "threads",
    "task_threads",
    "handler_timeout",
    "task_step_timeout",
    "shutdown_timeout",
    "clock_confirm",
    "suspect_for",
];
/// Tables at the top level.
pub(super) const TABLES: [&str; 6] = ["memory", "native", "cluster", "log", "checkpoints", "services"];
/// Keys in the tables that exist once.
const IN_TABLES: [&str; 17] = [
    "memory.bytes_max",
    "memory.uncommitted_bytes_max",
    "native.listen",
    "cluster.listen",
    "cluster.join",
    "cluster.listen_peers",
    "cluster.advertise",
    "cluster.advertise_peers",
    "log.segment_bytes",
    "checkpoints.interval",
    "checkpoints.keep",
    "checkpoints.timeout",
    "checkpoints.bytes_per_second",
    "checkpoints.check_bytes_max",
    "checkpoints.copy_to",
    "checkpoints.copy_interval",
    "checkpoints.copy_keep",
];
/// Keys in the table of each service.
const OF_SERVICES: [&str; 14] = [
    "shards",
    "replicas",
    "acks",
    "durability",
    "max_lag",
    "lease",
    "session_ttl",
    "idempotency_ttl",
    "attempts_max",
    "outbox_bytes_max",
    "kept_bytes_max",
    "sessions_max",
    "waiting_bytes_max",
    "dead_letter_bytes_max",
];

/// Returns the path of a variable's value in the file, by its name without the prefix: underscores also stand for the
/// dots between tables. `None` if the configuration has no such variable.
pub(super) fn path_of(name: &str) -> Option<Vec<String>> {
    let key = name.to_ascii_lowercase();
    if let Some(rest) = key.strip_prefix("services_") {
        let (field, service) = OF_SERVICES
            .iter()
            .find_map(|field| Some((*field, rest.strip_suffix(field)?.strip_suffix('_')?)))
            .filter(|(_, service)| !service.is_empty())?;
        return Some(vec!["services".to_owned(), service.to_owned(), field.to_owned()]);
    }
    let known = TOP.iter().chain(&IN_TABLES).find(|known| known.replace('.', "_") == key)?;
    Some(known.split('.').map(str::to_owned).collect())
}

/// Sets a variable's value at its path.
pub(super) fn set(table: &mut toml::Table, path: &[String], text: &str) {
    let value = match text.parse::<i64>() {
        Ok(number) if path != ["data_dir"] => Value::Integer(number),
        _ => Value::String(text.to_owned()),
    };
    let (last, tables) = path.split_last().expect("each path has a key");
    let mut at = table;
    for part in tables {
        let next = at.entry(part).or_insert_with(|| Value::Table(toml::Table::new()));
        at = next.as_table_mut().expect("the file was checked to have tables here");
    }
    at.insert(last.clone(), value);
}

/// Reports variables that belong to other programs, and are not errors of the node's configuration, in one warning.
pub(super) fn warn_of_unknown(names: &[String]) {
    if !names.is_empty() {
        tracing::warn!("ignoring unknown variables: {}", with_hints(names));
    }
}

pub(super) fn with_hints(names: &[String]) -> String {
    let text = names.iter().map(|name| {
        let key = name.strip_prefix(PREFIX).map(str::to_ascii_lowercase);
        let near = key.and_then(|key| nearest_key(&key.replace('_', ".")).or_else(|| nearest_key(&key)));
        let near = near
            .map(|key| format!(" (did you mean {PREFIX}{}?)", key.replace('.', "_").to_ascii_uppercase()));
        format!("{name}{}", near.unwrap_or_default())
    });
    Vec::from_iter(text).join(", ")
}

/// Returns the key in serde's sentence about an unknown field.
pub(super) fn unknown_key(reason: &str) -> Option<&str> {
    reason.strip_prefix("unknown field `")?.split('`').next()
}

/// Returns the key of the configuration that was probably meant.
pub(super) fn nearest_key(key: &str) -> Option<String> {
    let parts = IN_TABLES.iter().filter_map(|key| key.split_once('.')).map(|(_, part)| part);
    let whole = TOP.iter().chain(&TABLES).chain(&IN_TABLES).chain(&OF_SERVICES);
    nearest(key, whole.copied().chain(parts))
}
