use super::*;
use serde_json::json;

fn headers(all: &[(HeaderName, &'static str)]) -> HeaderMap {
    all.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
}

#[test]
fn a_run_is_named_once_and_as_runs_are() {
    let table = [
        (vec!["run-s4"], Some("s4")),
        (vec![], None),
        (vec!["run-s4", "run-s5"], None),
        (vec!["s4"], None),
        (vec!["run-"], None),
        (vec!["run-S4"], None),
        (vec!["run-s4' OR 1"], None),
        (vec!["ana"], None),
    ];
    for (named, run) in table {
        let named: Vec<_> = named.into_iter().map(|one| (reach::RUN, one)).collect();
        assert_eq!(run_of(&headers(&named)).as_ref().map(RunId::as_str), run, "{named:?}");
    }
}

#[test]
fn a_query_says_each_thing_once_and_goes_on_as_it_was_read() {
    let fields = read_query("run_id=a%62&run_ids=1&run_ids=2&x=%C3%BC+y").unwrap();
    assert_eq!(Value::Object(fields.clone()), json!({ "run_id": "ab", "run_ids": ["1", "2"], "x": "ü y" }));
    let mut url = Url::parse("http://h/p").unwrap();
    write_query(&mut url, &fields);
    assert_eq!(url.as_str(), "http://h/p?run_id=ab&run_ids=1&run_ids=2&x=%C3%BC+y");
    assert!(read_query("run_id=a&run_id=b").is_err());
    assert!(read_query("run_id=a&run%5Fid=b").is_err());
    assert_eq!(read_query("").unwrap(), Map::new());
}

#[test]
fn only_plain_json_is_read() {
    let kind = |kind| headers(&[(header::CONTENT_TYPE, kind)]);
    assert!(is_json(&kind("application/json")));
    assert!(is_json(&kind("Application/JSON; charset=utf-8")));
    assert!(is_json(&HeaderMap::new()));
    for other in
        ["", "text/plain", "application/x-www-form-urlencoded", "application/json-seq", "multipart/form-data"]
    {
        assert!(!is_json(&kind(other)), "{other}");
    }
    assert!(!is_json(&headers(&[
        (header::CONTENT_TYPE, "application/json"),
        (header::CONTENT_ENCODING, "gzip")
    ])));
}

#[test]
fn numbers_go_on_as_they_came() {
    let text =
        r#"{"a":0.1,"b":5e-324,"c":1.7976931348623157e308,"d":0.30000000000000004,"e":9223372036854775807}"#;
    let read: Map<String, Value> = serde_json::from_str(text).unwrap();
    for (name, number) in [("a", 0.1), ("b", 5e-324), ("c", f64::MAX), ("d", 0.1 + 0.2)] {
        assert_eq!(read[name].as_f64(), Some(number), "{name}");
    }
    assert_eq!(read["e"].as_i64(), Some(i64::MAX));
}
