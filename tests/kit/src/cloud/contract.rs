//! What Microsoft has written down about these calls: which there are, what may be asked, what may be answered.
//!
//! `operations.json` names the calls and the document that describes each. A document is Swagger 2.0, so its
//! schemas are JSON Schema draft 4 with some words of Microsoft's own. What one call can reach is copied into one
//! schema without outside references, compiled the first time it is needed, and kept for the process.

use jsonschema::Validator;
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
};

pub struct Contract {
    root: PathBuf,
    operations: Vec<Arc<Operation>>,
    documents: Mutex<HashMap<String, Arc<Value>>>,
    shapes: Mutex<HashMap<String, Arc<Shape>>>,
}

/// One call.
#[derive(Debug)]
pub struct Operation {
    pub id: String,
    pub method: String,
    pub path: String,
    pub version: String,
    pub document: String,
    pub statuses: Vec<String>,
    pub examples: Vec<String>,
}

/// What a body has to be.
struct Shape {
    /// Without outside references: those of `definitions` alone.
    schema: Value,
    validator: Validator,
}

/// Which way a body goes: a request may not set what only Azure may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Asked,
    Answered,
}

/// A request as far as the documents see it.
pub struct Call<'a> {
    pub method: &'a str,
    /// Without the query.
    pub path: &'a str,
    pub query: &'a [(String, String)],
    pub body: Option<&'a Value>,
}

/// The call that was meant, and what the parts of its path were.
#[derive(Clone)]
pub struct Matched {
    pub operation: Arc<Operation>,
    pub path: BTreeMap<String, String>,
}

impl Contract {
    /// The documents that lie beside the project, or nothing where there are none. Read once in a process.
    pub fn beside() -> Option<Arc<Self>> {
        static ONE: OnceLock<Option<Arc<Contract>>> = OnceLock::new();
        ONE.get_or_init(|| {
            let root = Path::new(crate::TOP);
            // A checkout may lie one or two levels below what it shares.
            let found = ["../shared/azure-openapi", "../../shared/azure-openapi"].map(|at| root.join(at));
            let root = found.into_iter().find(|at| at.join("operations.json").exists())?;
            Some(Arc::new(Self::read(root)))
        })
        .clone()
    }

    fn read(root: PathBuf) -> Self {
        let text = fs::read_to_string(root.join("operations.json")).unwrap();
        let all: Value = serde_json::from_str(&text).unwrap();
        let words = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        let operations = all["operations"].as_array().unwrap().iter().map(|row| {
            let text = |key: &str| row[key].as_str().unwrap().to_owned();
            Arc::new(Operation {
                id: text("operationId"),
                method: text("method"),
                path: text("path"),
                version: text("apiVersion"),
                document: text("document"),
                statuses: words(&row["responses"]),
                examples: words(&row["examples"]),
            })
        });
        Self { operations: operations.collect(), root, documents: Mutex::default(), shapes: Mutex::default() }
    }

    pub fn operations(&self) -> &[Arc<Operation>] {
        &self.operations
    }

    pub fn example(&self, path: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.root.join(path)).unwrap()).unwrap()
    }

    /// The one call with this method and path. Of several, the one that says most of its path itself.
    pub fn find(&self, method: &str, path: &str) -> Option<Matched> {
        let fitting = self.operations.iter().filter(|operation| operation.method == method);
        let fitting = fitting.filter_map(|operation| {
            let parts = matches(&operation.path, path)?;
            Some((parts.len(), Matched { operation: Arc::clone(operation), path: parts }))
        });
        // A template that takes anything comes last; so does one with more holes.
        fitting
            .min_by_key(|(holes, found)| {
                (
                    found.operation.path.contains("{resourceId}") || found.operation.path.contains("{scope}"),
                    *holes,
                )
            })
            .map(|(_, found)| found)
    }

    /// Everything about a request that the documents do not allow.
    pub fn refuse(&self, found: &Matched, call: &Call) -> Vec<String> {
        let operation = &found.operation;
        let mut wrong = Vec::new();
        let mut shape = None;
        let mut known = Vec::new();
        for (document, parameter) in self.parameters(operation) {
            let name = parameter["name"].as_str().unwrap_or_default().to_owned();
            match parameter["in"].as_str() {
                Some("path") => {
                    wrong.extend(refuse_text(&name, found.path.get(&name).map(String::as_str), &parameter));
                }
                Some("query") => {
                    let given: Vec<_> =
                        call.query.iter().filter(|(key, _)| key.eq_ignore_ascii_case(&name)).collect();
                    if given.len() > 1 {
                        wrong.push(format!("{name} is given twice"));
                    }
                    wrong.extend(refuse_text(&name, given.first().map(|(_, v)| v.as_str()), &parameter));
                    known.push(name);
                }
                Some("body") => {
                    let key = format!("{} asked", operation.id);
                    shape = Some((
                        self.shape(&key, &document, &parameter["schema"]),
                        parameter["required"] == true,
                    ));
                }
                _ => {}
            }
        }
        for (name, value) in call.query {
            if !known.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                wrong.push(format!("{} has no query parameter {name}", operation.id));
            } else if name.eq_ignore_ascii_case("api-version") && *value != operation.version {
                wrong.push(format!("api-version {value}: {} is of {}", operation.id, operation.version));
            }
        }
        match (shape, call.body) {
            (Some((shape, _)), Some(body)) => wrong.extend(shape.refuse(body, Way::Asked)),
            (Some((_, true)), None) => wrong.push(format!("{} needs a body", operation.id)),
            (None, Some(_)) => wrong.push(format!("{} takes no body", operation.id)),
            _ => {}
        }
        wrong
    }

    /// Everything about an answer that the documents do not allow.
    pub fn doubt(&self, operation: &Operation, status: u16, body: Option<&Value>) -> Vec<String> {
        let document = self.document(&operation.document);
        let responses = &document["paths"][&operation.path][operation.method.to_lowercase()]["responses"];
        let named = responses.get(status.to_string());
        let response = match named {
            Some(response) => response,
            // Errors of a call that describes none: they have ARM's one shape all the same.
            None if status >= 400 => match responses.get("default") {
                Some(response) => response,
                None => return Vec::new(),
            },
            None => return vec![format!("{} never answers {status}", operation.id)],
        };
        let key = format!(
            "{} {}",
            operation.id,
            if named.is_some() { status.to_string() } else { "default".into() }
        );
        match (response.get("schema"), body) {
            (Some(schema), Some(body)) => {
                self.shape(&key, &operation.document, schema).refuse(body, Way::Answered)
            }
            // A schema beside 202 or 204 promises nothing: those have no body.
            (None, Some(body)) if !body.is_null() && status < 300 => {
                vec![format!("{} answers {status} without a body", operation.id)]
            }
            (Some(_), None) if status == 200 || status == 201 => {
                vec![format!("{} answers {status} with a body", operation.id)]
            }
            _ => Vec::new(),
        }
    }

    /// The body in an example of a call, and what is wrong with it by its schema. Examples set what may not be set now
    /// and then; that is not looked at.
    pub fn example_body(&self, operation: &Operation, example: &Value) -> Option<(Value, Vec<String>)> {
        let parameters = self.parameters(operation);
        let (document, parameter) = parameters.into_iter().find(|(_, one)| one["in"] == "body")?;
        let body = example["parameters"].get(parameter["name"].as_str()?)?.clone();
        let shape = self.shape(&format!("{} asked", operation.id), &document, &parameter["schema"]);
        let wrong = shape.refuse(&body, Way::Answered);
        Some((body, wrong))
    }

    /// With the document each is from.
    fn parameters(&self, operation: &Operation) -> Vec<(String, Value)> {
        let document = self.document(&operation.document);
        let path = &document["paths"][&operation.path];
        let of = |place: &Value| place["parameters"].as_array().cloned().unwrap_or_default();
        let all = of(path).into_iter().chain(of(&path[operation.method.to_lowercase()]));
        all.map(|parameter| match parameter["$ref"].as_str() {
            Some(reference) => {
                let (document, pointer) = follow(&operation.document, reference);
                let found = self.document(&document).pointer(&pointer).unwrap().clone();
                (document, found)
            }
            None => (operation.document.clone(), parameter),
        })
        .collect()
    }

    fn document(&self, path: &str) -> Arc<Value> {
        let mut documents = self.documents.lock().unwrap();
        let document = documents.entry(path.to_owned()).or_insert_with(|| {
            let text = fs::read_to_string(self.root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
            Arc::new(serde_json::from_str(&text).unwrap())
        });
        Arc::clone(document)
    }

    fn shape(&self, key: &str, document: &str, schema: &Value) -> Arc<Shape> {
        if let Some(shape) = self.shapes.lock().unwrap().get(key) {
            return Arc::clone(shape);
        }
        let mut definitions = BTreeMap::new();
        let mut top = self.copy(document, schema, &mut definitions);
        let definitions: Map<_, _> = definitions.into_iter().collect();
        top["definitions"] = Value::Object(definitions);
        top["$schema"] = json!("http://json-schema.org/draft-04/schema#");
        let validator = jsonschema::draft4::options().offline().build(&top);
        let validator = validator.unwrap_or_else(|e| panic!("the schema of {key}: {e}"));
        let shape = Arc::new(Shape { schema: top, validator });
        Arc::clone(self.shapes.lock().unwrap().entry(key.to_owned()).or_insert(shape))
    }

    /// A schema whose references all lead into `definitions`, which gets what they lead to.
    fn copy(&self, document: &str, schema: &Value, definitions: &mut BTreeMap<String, Value>) -> Value {
        match schema {
            Value::Array(all) => all.iter().map(|one| self.copy(document, one, definitions)).collect(),
            Value::Object(object) => {
                let mut made = Map::new();
                for (key, value) in object {
                    let copied = match (key.as_str(), value) {
                        ("$ref", Value::String(reference)) => {
                            let (document, pointer) = follow(document, reference);
                            let name = format!("{document}#{pointer}").replace(['/', '#', '~', '%'], "!");
                            if !definitions.contains_key(&name) {
                                definitions.insert(name.clone(), Value::Null);
                                let to = self.document(&document);
                                let to = to
                                    .pointer(&pointer)
                                    .unwrap_or_else(|| panic!("{reference} leads nowhere"));
                                let copied = self.copy(&document, to, definitions);
                                definitions.insert(name.clone(), copied);
                            }
                            json!(format!("#/definitions/{name}"))
                        }
                        // An open list names what is known so far, and other values are as good.
                        ("enum", Value::Array(_))
                            if object.get("x-ms-enum").is_some_and(|e| e["modelAsString"] == true) =>
                        {
                            continue;
                        }
                        // Long, and no promise. A property may have this name too.
                        ("description", Value::String(_)) => continue,
                        _ => self.copy(document, value, definitions),
                    };
                    made.insert(key.clone(), copied);
                }
                // Microsoft's own word for what draft 4 writes as a second type.
                if object.get("x-nullable") == Some(&Value::Bool(true))
                    && object.get("type").is_some_and(Value::is_string)
                {
                    made["type"] = json!([object["type"], "null"]);
                }
                Value::Object(made)
            }
            other => other.clone(),
        }
    }
}

impl Shape {
    fn refuse(&self, body: &Value, way: Way) -> Vec<String> {
        let errors = self.validator.iter_errors(body);
        let mut wrong: Vec<_> = errors.map(|e| format!("{}: {e}", e.instance_path())).collect();
        self.unheard(body, &self.schema, way, String::new(), &mut wrong);
        wrong
    }

    /// JSON Schema lets any further property pass. ARM's own parsers do not, and a misspelt `deleteOption` that passes
    /// here leaks money there: so every property must be one that is described, and in a request one that may be set.
    fn unheard(&self, value: &Value, schema: &Value, way: Way, at: String, wrong: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                let mut known = Map::new();
                let mut open = false;
                self.properties(schema, &mut known, &mut open);
                for (key, value) in object {
                    let at = format!("{at}/{key}");
                    match known.get(key) {
                        Some(schema) if way == Way::Asked && schema["readOnly"] == true => {
                            wrong.push(format!("{at} is read-only"));
                        }
                        Some(schema) => self.unheard(value, schema, way, at, wrong),
                        None if open || known.is_empty() => {}
                        None => wrong.push(format!("{at} is not described")),
                    }
                }
            }
            Value::Array(all) => {
                let schema = self.resolved(schema);
                if let Some(items) = schema.get("items") {
                    for (n, one) in all.iter().enumerate() {
                        self.unheard(one, items, way, format!("{at}/{n}"), wrong);
                    }
                }
            }
            _ => {}
        }
    }

    /// What an object may have: its own, and those of what it is also.
    fn properties(&self, schema: &Value, known: &mut Map<String, Value>, open: &mut bool) {
        let schema = self.resolved(schema);
        // With a discriminator there are kinds that this one does not describe.
        *open |= schema.get("additionalProperties").is_some_and(|more| *more != Value::Bool(false));
        *open |= schema.get("discriminator").is_some();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            known.insert(name.clone(), property.clone());
        }
        for other in schema["allOf"].as_array().into_iter().flatten() {
            self.properties(other, known, open);
        }
    }

    fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let mut schema = schema;
        while let Some(name) = schema["$ref"].as_str().and_then(|at| at.strip_prefix("#/definitions/")) {
            schema = &self.schema["definitions"][name];
        }
        schema
    }
}

/// Whether a path is of this template; the parts that it leaves open. ARM takes no notice of case.
fn matches(template: &str, path: &str) -> Option<BTreeMap<String, String>> {
    let mut wanted: Vec<_> = template.trim_matches('/').split('/').collect();
    let mut given: Vec<_> = path.trim_matches('/').split('/').collect();
    let mut parts = BTreeMap::new();
    // These two are whole paths of their own.
    if let Some(name) = wanted.first().copied().filter(|part| ["{resourceId}", "{scope}"].contains(part)) {
        let tail = wanted.len() - 1;
        if given.len() <= tail {
            return None;
        }
        let whole = given.drain(..given.len() - tail).collect::<Vec<_>>().join("/");
        parts.insert(name.trim_matches(['{', '}']).to_owned(), format!("/{whole}"));
        // What has no provider is no resource.
        if name == "{resourceId}" && !whole.to_lowercase().contains("/providers/") {
            return None;
        }
        wanted.remove(0);
    }
    if wanted.len() != given.len() {
        return None;
    }
    for (wanted, given) in wanted.into_iter().zip(given) {
        match wanted.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
            Some(name) if !given.is_empty() => {
                parts.insert(name.to_owned(), given.to_owned());
            }
            None if wanted.eq_ignore_ascii_case(given) => {}
            _ => return None,
        }
    }
    Some(parts)
}

/// Where a reference leads: a document below the root, and a pointer into it.
fn follow(from: &str, reference: &str) -> (String, String) {
    let (file, pointer) = reference.split_once('#').unwrap_or((reference, ""));
    if file.is_empty() {
        return (from.to_owned(), pointer.to_owned());
    }
    let mut at: Vec<_> = from.split('/').collect();
    at.pop();
    for part in file.split('/') {
        match part {
            "." => {}
            ".." => drop(at.pop()),
            part => at.push(part),
        }
    }
    (at.join("/"), pointer.to_owned())
}

/// What is wrong with one part of a path or of a query.
fn refuse_text(name: &str, given: Option<&str>, parameter: &Value) -> Option<String> {
    let Some(given) = given else {
        return (parameter["required"] == true).then(|| format!("{name} is missing"));
    };
    let number = |key: &str| parameter[key].as_u64().and_then(|n| usize::try_from(n).ok());
    let letters = given.chars().count();
    let closed = parameter["x-ms-enum"]["modelAsString"] != true;
    let named = || parameter["enum"].as_array().is_some_and(|all| all.iter().all(|one| one != given));
    let wrong = match parameter["type"].as_str() {
        Some("integer") if given.parse::<i64>().is_err() => "is not an integer",
        Some("boolean") if !["true", "false"].contains(&given.to_lowercase().as_str()) => "is not a boolean",
        _ if number("minLength").is_some_and(|least| letters < least) => "is too short",
        _ if number("maxLength").is_some_and(|most| letters > most) => "is too long",
        _ if closed && named() => "is none of the values there are",
        _ if parameter["pattern"].as_str().is_some_and(|pattern| !fits(pattern, given)) => {
            "is not of the pattern"
        }
        _ => return None,
    };
    Some(format!("{name}={given} {wrong}"))
}

fn fits(pattern: &str, text: &str) -> bool {
    let schema = json!({"type": "string", "pattern": pattern});
    jsonschema::draft4::is_valid(&schema, &json!(text))
}
