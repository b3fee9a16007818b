//! The retail price list: open to everybody, filtered by an expression whose values heed case.

use super::{answer::Answer, catalog, door::Heard};
use serde_json::{Value, json};

const PAGE: usize = 100;

pub(super) fn answer(heard: &Heard, regions: &[String]) -> Answer {
    if heard.method != "GET" || heard.path != "/api/retail/prices" {
        return Answer::error(404, "NotFound", heard.path.clone());
    }
    let query = |name: &str| heard.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    if query("api-version").is_some_and(|version| version != "2023-01-01-preview") {
        return Answer::of(400, json!({"Error": {"Code": "BadRequest", "Message": "Invalid API version."}}));
    }
    let mut rows: Vec<Value> = regions
        .iter()
        .flat_map(|region| catalog::SIZES.iter().flat_map(move |size| catalog::prices(size, region)))
        .collect();
    let filter = query("$filter").unwrap_or_default();
    for term in filter.split(" and ").filter(|term| !term.is_empty()) {
        let Some(takes) = term_of(term.trim()) else {
            let said = format!("Invalid OData parameters supplied: {term}");
            return Answer::of(400, json!({"Error": {"Code": "BadRequest", "Message": said}}));
        };
        rows.retain(|row| takes(row));
    }
    let from: usize = query("$skip").and_then(|skip| skip.parse().ok()).unwrap_or_default();
    let more = rows.len() > from + PAGE;
    let rows: Vec<_> = rows.into_iter().skip(from).take(PAGE).collect();
    let next = more.then(|| {
        let head: Vec<_> = heard.target.split('&').filter(|part| !part.starts_with("$skip=")).collect();
        format!("{}{}&$skip={}", heard.base, head.join("&"), from + PAGE)
    });
    Answer::of(
        200,
        json!({
            "BillingCurrency": "USD",
            "CustomerEntityId": "Default",
            "CustomerEntityType": "Retail",
            "Count": rows.len(),
            "Items": rows,
            "NextPageLink": next,
        }),
    )
}

/// Whether a row is wanted.
type Takes = Box<dyn Fn(&Value) -> bool>;

/// `key eq 'value'`, or `contains(key, 'value')`.
fn term_of(term: &str) -> Option<Takes> {
    let unquoted = |text: &str| text.trim().strip_prefix('\'')?.strip_suffix('\'').map(str::to_owned);
    if let Some(inner) = term.strip_prefix("contains(").and_then(|rest| rest.strip_suffix(')')) {
        let (key, value) = inner.split_once(',')?;
        let (key, value) = (key.trim().to_owned(), unquoted(value)?);
        return Some(Box::new(move |row| row[&key].as_str().is_some_and(|is| is.contains(&value))));
    }
    let (key, value) = term.split_once(" eq ")?;
    let (key, value) =
        (if key.trim() == "priceType" { "type" } else { key.trim() }.to_owned(), unquoted(value)?);
    Some(Box::new(move |row| row[&key] == *value))
}
