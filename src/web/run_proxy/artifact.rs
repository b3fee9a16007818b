//! A path of an artifact, as MLflow's clients write it below `mlflow-artifacts`: whose folder it is in, and how it goes on. Pure.

use super::{claim::Thing, route::Refusal};
use crate::gpu::tracking::plain;
use reqwest::Url;

/// Where MLflow takes and gives artifacts.
pub const ROOT: &str = "/api/2.0/mlflow-artifacts/artifacts";

/// The folder in which the artifacts of one thing are.
const FOLDER: &str = "artifacts";

#[derive(Debug, PartialEq)]
pub struct ArtifactPath {
    /// Decoded, each once.
    parts: Vec<String>,
    /// How many of them are the folder of `thing`.
    folder: usize,
    pub thing: Thing,
}

impl ArtifactPath {
    /// Reads a path of a URL, in which each part is encoded once.
    pub fn from_url(path: &str) -> Result<Self, Refusal> {
        let parts: Option<Vec<_>> = path.split('/').map(decode).collect();
        parts.map_or_else(|| bad("it is not UTF-8, encoded once"), Self::new)
    }

    /// Reads a path that is not encoded.
    pub fn from_text(path: &str) -> Result<Self, Refusal> {
        Self::new(path.split('/').map(str::to_owned).collect())
    }

    fn new(parts: Vec<String>) -> Result<Self, Refusal> {
        if let Some(part) = parts.iter().find(|part| !is_name(part)) {
            return bad(&format!("{part:?} is no name of a file or folder"));
        }
        // EXPERIMENT/RUN/artifacts, EXPERIMENT/models/MODEL/artifacts, EXPERIMENT/traces/TRACE/artifacts; an experiment may have
        // another place. MLflow is asked whether that is where the artifacts of this id are.
        let folder = (1..parts.len()).find(|n| parts[*n] == FOLDER && is_id(&parts[n - 1]));
        let Some(folder) = folder else { return bad("it is in no run's, model's or trace's folder") };
        let id = parts[folder - 1].clone();
        let kind = folder.checked_sub(2).map(|n| parts[n].as_str());
        let thing = match kind {
            Some("models") => Thing::Model(id),
            Some("traces") => Thing::Trace(id),
            _ => Thing::Run(id),
        };
        Ok(Self { parts, folder: folder + 1, thing })
    }

    /// The folder of the thing's artifacts.
    pub fn folder(&self) -> String {
        self.parts[..self.folder].join("/")
    }

    /// Whether it is something in that folder.
    pub fn is_inside(&self) -> bool {
        self.parts.len() > self.folder
    }

    pub fn text(&self) -> String {
        self.parts.join("/")
    }

    /// Adds it to the URL of a server, encoded once.
    pub fn extend(&self, url: &mut Url) {
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(&self.parts);
        }
    }
}

fn bad<T>(why: &str) -> Result<T, Refusal> {
    Err(Refusal::Bad(format!("this is no path of an artifact: {why}")))
}

/// An id that MLflow made: 32 hexadecimal digits, since 3.0 with a few letters before them for what is no run.
fn is_id(part: &str) -> bool {
    plain(part) && part.len() >= 32
}

/// Something that is one step down to every reader: MLflow's, which may decode once more, and the file system's.
pub fn is_name(part: &str) -> bool {
    let encoded = part
        .as_bytes()
        .windows(3)
        .any(|three| three[0] == b'%' && three[1].is_ascii_hexdigit() && three[2].is_ascii_hexdigit());
    !matches!(part, "" | "." | "..")
        && !part.contains(['/', '\\', '\0'])
        && !part.chars().any(char::is_control)
        && !encoded
}

/// Decodes a part of a URL's path, once. None: it is not encoded as it should be.
fn decode(part: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
        bytes.push(match byte {
            b'%' => u8::try_from(digit()? * 16 + digit()?).ok()?,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_path_says_whose_folder_it_is_in() {
        let table = [
            (format!("1/{ID}/artifacts/model.pt"), Thing::Run(ID.into()), format!("1/{ID}/artifacts")),
            (format!("1/{ID}/artifacts"), Thing::Run(ID.into()), format!("1/{ID}/artifacts")),
            (
                format!("1/models/m-{ID}/artifacts/a%20b/%C3%A9.bin"),
                Thing::Model(format!("m-{ID}")),
                format!("1/models/m-{ID}/artifacts"),
            ),
            (
                format!("old/place/traces/tr-{ID}/artifacts/traces.json"),
                Thing::Trace(format!("tr-{ID}")),
                format!("old/place/traces/tr-{ID}/artifacts"),
            ),
            // The first folder counts: what is below it is the run's own.
            (
                format!("1/{ID}/artifacts/{}/artifacts/x", ID.replace('0', "f")),
                Thing::Run(ID.into()),
                format!("1/{ID}/artifacts"),
            ),
        ];
        for (path, thing, folder) in table {
            let read = ArtifactPath::from_url(&path).unwrap();
            assert_eq!((read.thing.clone(), read.folder()), (thing, folder), "{path}");
            let mut url = Url::parse(&format!("http://h{ROOT}")).unwrap();
            read.extend(&mut url);
            assert_eq!(url.as_str(), format!("http://h{ROOT}/{path}"), "what goes on is what was read");
        }
        assert!(!ArtifactPath::from_text(&format!("1/{ID}/artifacts")).unwrap().is_inside());
    }

    #[test]
    fn a_path_that_could_be_read_in_two_ways_is_refused() {
        let own = format!("1/{ID}/artifacts");
        let table = [
            String::new(),
            "2".into(),
            format!("1/{ID}"),
            format!("1/{ID}/models/x"),
            format!("1/{ID}/ARTIFACTS/x"),
            format!("/{own}/x"),
            format!("{own}//x"),
            format!("{own}/x/"),
            format!("{own}/../../../2/x"),
            format!("{own}/./x"),
            format!("{own}/%2e%2e/x"),
            format!("{own}/%2E./x"),
            format!("{own}/..%2fx"),
            format!("{own}/a%2Fb"),
            format!("{own}/a%5c..%5cb"),
            format!("{own}/a\\b"),
            format!("{own}/%252e%252e/x"),
            format!("{own}/a%00b"),
            format!("{own}/a%0ab"),
            format!("{own}/%ff"),
            format!("{own}/%"),
            format!("{own}/%4"),
            format!("{own}/%zz"),
            format!("{own}/%+1"),
        ];
        for path in table {
            assert!(ArtifactPath::from_url(&path).is_err(), "{path}");
        }
    }
}
