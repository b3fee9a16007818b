//! The query of a call: read as MLflow reads it, and written anew. Pure.

use super::route::Refusal;
use reqwest::Url;
use serde_json::{Map, Value};

/// Reads a query as MLflow does: fields that are lists by their plural, the others once.
pub fn read_query(query: &str) -> Result<Map<String, Value>, Refusal> {
    let mut url = Url::parse("http://localhost/").map_err(|e| Refusal::Bad(e.to_string()))?;
    url.set_query(Some(query));
    let mut fields = Map::new();
    for (name, value) in url.query_pairs() {
        let value = Value::String(value.into_owned());
        let entry = fields.entry(name.as_ref());
        if LISTS.contains(&name.as_ref()) {
            match entry.or_insert_with(|| Value::Array(vec![])) {
                Value::Array(all) => all.push(value),
                other => *other = value,
            }
        } else if let serde_json::map::Entry::Vacant(entry) = entry {
            entry.insert(value);
        } else {
            return Err(Refusal::Bad(format!("{name:?} is there twice")));
        }
    }
    Ok(fields)
}

/// Fields of a query that may be there more than once.
const LISTS: [&str; 3] = ["experiment_ids", "run_ids", "order_by"];

pub fn write_query(url: &mut Url, fields: &Map<String, Value>) {
    if fields.is_empty() {
        return;
    }
    let mut pairs = url.query_pairs_mut();
    for (name, value) in fields {
        match value {
            Value::Array(all) => pairs.extend_pairs(all.iter().filter_map(Value::as_str).map(|v| (name, v))),
            value => pairs.append_pair(name, value.as_str().unwrap_or_default()),
        };
    }
}
