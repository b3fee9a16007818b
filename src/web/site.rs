//! A static site: the files below one directory, on a unix socket, behind nginx. GET and HEAD, ranges, gzip,
//! validators. It lists no directory, serves no dotfile and nothing that a link leads to outside the root.

use super::{attend, gate};
use crate::host::Host;
use anyhow::Result;
use axum::{
    Router,
    extract::Request,
    handler::HandlerWithoutStateExt as _,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use std::{
    io,
    path::{Component, Path, PathBuf},
    pin::Pin,
};
use tokio::io::AsyncReadExt as _;
use tower_http::{
    compression::{
        CompressionLayer,
        predicate::{DefaultPredicate, NotForContentType, Predicate as _},
    },
    services::{
        ServeDir,
        fs::{Backend, TokioBackend, TokioFile},
    },
};

/// A page that says what was not found is read whole, so there is an end to it.
const LONGEST_404: u64 = 1 << 20;

pub struct Site {
    /// May be a link, and may be pointed elsewhere while we serve: what follows is served from there.
    pub root: PathBuf,
    pub socket: PathBuf,
}

/// Serve until SIGTERM. A root that does not exist yet is no error: it may be built later.
pub async fn serve(host: &Host, site: Site) -> Result<()> {
    let listener = gate::listen(host, &site.socket)?;
    let status = format!("serving {} on {}", site.root.display(), site.socket.display());
    attend(listener, app(&site.root), &status).await
}

/// The site as a service. `/healthz` answers 200 as soon as there is an `index.html`.
pub(super) fn app(root: &Path) -> Router {
    let fence = Fence { root: root.to_owned() };
    let (front, lost) = (fence.clone(), fence.clone());
    let missing = move || async move { lost.missing().await };
    let files = ServeDir::with_backend(root, fence).precompressed_gzip().fallback(missing.into_service());
    let health = move || async move {
        match front.open(front.root.join("index.html")).await {
            Ok(_) => (StatusCode::OK, "ok\n"),
            Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "there is no index.html yet\n"),
        }
    };
    // What is compressed already only grows.
    let worthwhile = DefaultPredicate::new()
        .and(NotForContentType::const_new("font/"))
        .and(NotForContentType::const_new("video/"))
        .and(NotForContentType::const_new("application/zip"))
        .and(NotForContentType::const_new("application/gzip"));
    Router::new()
        .route("/healthz", get(health))
        .fallback_service(files)
        .layer(CompressionLayer::new().compress_when(worthwhile))
        .layer(from_fn(around))
}

/// What is said around every answer.
async fn around(mut request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    // ServeDir answers `//evil.example/..` with a redirect to that host if there is such a directory.
    if path.starts_with("//") {
        return StatusCode::NOT_FOUND.into_response();
    }
    // ServeDir does not know If-Range; the whole file is always a right answer to it.
    if request.headers().contains_key(header::IF_RANGE) {
        request.headers_mut().remove(header::RANGE);
    }
    let mut answer = next.run(request).await;
    let status = answer.status();
    let headers = answer.headers_mut();
    // The compressed bytes are not those that a strong validator names.
    if headers.contains_key(header::CONTENT_ENCODING) {
        weaken(headers);
    }
    let keep = match status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED => freshness(&path),
        _ => "no-cache",
    };
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static(keep));
    answer
}

fn weaken(headers: &mut HeaderMap) {
    let strong =
        headers.get(header::ETAG).and_then(|tag| tag.to_str().ok()).filter(|tag| !tag.starts_with("W/"));
    if let Some(weak) = strong.and_then(|tag| HeaderValue::try_from(format!("W/{tag}")).ok()) {
        headers.insert(header::ETAG, weak);
    }
}

/// How long a browser may keep a file without asking. Names that carry a hash of their contents, for ever;
/// pictures and fonts, for an hour; pages, scripts and styles must fit one another, so it asks each time, and
/// mostly hears 304.
fn freshness(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or_default();
    let is_hash = |part: &str| {
        part.len() >= 8
            && part.bytes().all(|b| b.is_ascii_hexdigit())
            && part.bytes().any(|b| b.is_ascii_digit())
    };
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    match extension {
        "" | "html" => "no-cache",
        _ if name.split(['.', '-']).any(is_hash) => "max-age=31536000, immutable",
        "png" | "jpg" | "jpeg" | "gif" | "svg" | "webp" | "ico" | "woff" | "woff2" => "max-age=3600",
        _ => "no-cache",
    }
}

/// The files of one directory, and no others. Links are followed as long as they stay inside.
#[derive(Clone)]
struct Fence {
    root: PathBuf,
}

impl Fence {
    /// Where the file really is; what lies outside, or is hidden, is not there.
    async fn inside(&self, path: &Path) -> io::Result<PathBuf> {
        let below = path.strip_prefix(&self.root).map_err(|_| io::ErrorKind::NotFound)?;
        if below.components().any(|part| !is_plain(part)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let gone = |_| io::Error::from(io::ErrorKind::NotFound);
        let root = tokio::fs::canonicalize(&self.root).await.map_err(gone)?;
        let full = tokio::fs::canonicalize(path).await.map_err(gone)?;
        match full.strip_prefix(&root) {
            // A link may also lead inside to what is hidden.
            Ok(below) if below.components().all(is_plain) => Ok(full),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    async fn missing(self) -> Response {
        let page = async {
            let mut text = Vec::new();
            let file = self.open(self.root.join("404.html")).await?;
            file.take(LONGEST_404).read_to_end(&mut text).await?;
            io::Result::Ok(text)
        };
        match page.await {
            Ok(text) => (StatusCode::NOT_FOUND, Html(text)).into_response(),
            Err(_) => (StatusCode::NOT_FOUND, "There is no such page.\n").into_response(),
        }
    }
}

fn is_plain(part: Component<'_>) -> bool {
    matches!(part, Component::Normal(name) if !name.as_encoded_bytes().starts_with(b"."))
}

impl Backend for Fence {
    type File = TokioFile;
    type Metadata = <TokioBackend as Backend>::Metadata;
    type OpenFuture = Pin<Box<dyn Future<Output = io::Result<Self::File>> + Send>>;
    type MetadataFuture = Pin<Box<dyn Future<Output = io::Result<Self::Metadata>> + Send>>;

    fn open(&self, path: PathBuf) -> Self::OpenFuture {
        let fence = self.clone();
        Box::pin(async move {
            let path = fence.inside(&path).await?;
            // Opening a pipe would wait for its writer for ever.
            if !tokio::fs::metadata(&path).await?.is_file() {
                return Err(io::ErrorKind::NotFound.into());
            }
            TokioBackend.open(path).await
        })
    }

    fn metadata(&self, path: PathBuf) -> Self::MetadataFuture {
        let fence = self.clone();
        Box::pin(async move { TokioBackend.metadata(fence.inside(&path).await?).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host::System, web::attend_until};
    use std::net::SocketAddr;
    use tokio::{
        io::AsyncWriteExt as _,
        net::{TcpListener, TcpStream},
    };

    /// A site on a port of its own. It is the task's: it ends with the test's runtime.
    struct Served {
        dir: tempfile::TempDir,
        at: SocketAddr,
    }

    struct Answer {
        status: u16,
        head: String,
        body: Vec<u8>,
    }

    impl Answer {
        fn header(&self, name: &str) -> Option<&str> {
            self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        }

        fn text(&self) -> String {
            String::from_utf8_lossy(&self.body).into_owned()
        }
    }

    impl Served {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let host = Host::new(dir.path(), System);
            let put = |path: &str, text: &str| host.write(Path::new(path), 0o644, text.as_bytes()).unwrap();
            put("/secret.txt", "secret");
            put("/site/index.html", "<h1>front</h1>");
            put("/site/guide/index.html", "<h1>guide</h1>");
            put("/site/empty/x.txt", "x");
            put("/site/app.js", &"let x = 1;\n".repeat(1000));
            put("/site/app.0a1b2c3d4e.js", "1");
            put("/site/logo.png", &"p".repeat(1000));
            put("/site/a b.txt", "spaced");
            put("/site/.git/config", "hidden");
            put("/site/.htpasswd", "hidden");
            put("/siteother/x.txt", "secret");
            let link = |path: &str, to: &str| host.link(Path::new(path), Path::new(to)).unwrap();
            link("/site/out.txt", "../secret.txt");
            link("/site/outdir", "..");
            link("/site/sibling", "../siteother");
            link("/site/absolute.txt", "/etc/hostname");
            link("/site/inside.txt", "a b.txt");
            link("/site/latest", "guide");
            link("/site/tohidden.txt", ".htpasswd");
            link("/site/loop", "loop");
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = listener.local_addr().unwrap();
            let app = app(&dir.path().join("site"));
            tokio::spawn(attend_until(listener, app, std::future::pending()));
            Self { dir, at }
        }

        fn host(&self) -> Host {
            Host::new(self.dir.path(), System)
        }

        /// As written, without any client's tidying of the path.
        async fn ask(&self, line: &str, headers: &str) -> Answer {
            let mut stream = TcpStream::connect(self.at).await.unwrap();
            let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            Answer { status: head[9..12].parse().unwrap(), head, body: bytes[end + 4..].to_vec() }
        }

        async fn get(&self, path: &str) -> Answer {
            self.ask(&format!("GET {path}"), "").await
        }
    }

    #[tokio::test]
    async fn files_and_front_pages_are_served() {
        let site = Served::new().await;
        for (path, text) in [
            ("/", "<h1>front</h1>"),
            ("/?x=1", "<h1>front</h1>"),
            ("/guide/", "<h1>guide</h1>"),
            ("/latest/", "<h1>guide</h1>"),
            ("/a%20b.txt", "spaced"),
            ("/inside.txt", "spaced"),
            ("/healthz", "ok\n"),
        ] {
            let answer = site.get(path).await;
            assert_eq!((answer.status, answer.text().as_str()), (200, text), "{path}");
        }
        let moved = site.get("/guide").await;
        assert_eq!((moved.status, moved.header("location")), (307, Some("/guide/")));
        let head = site.ask("HEAD /", "").await;
        assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("14"), 0));
    }

    #[tokio::test]
    async fn nothing_outside_hidden_or_listed_is_served() {
        let site = Served::new().await;
        for path in [
            "/../secret.txt",
            "/..%2fsecret.txt",
            "/%2e%2e/secret.txt",
            "/%2e%2e%2fsecret.txt",
            "/guide/../../secret.txt",
            "/guide/..%2f..%2fsecret.txt",
            "/..%5csecret.txt",
            "/%252e%252e/secret.txt",
            "/%2fetc/hostname",
            "//etc/hostname",
            "//guide",
            "/etc/hostname",
            "/out.txt",
            "/outdir/secret.txt",
            "/outdir/",
            "/sibling/x.txt",
            "/absolute.txt",
            "/tohidden.txt",
            "/loop",
            "/.htpasswd",
            "/%2ehtpasswd",
            "/.git/config",
            "/.git/",
            "/empty/",
            "/app.js/",
            "/app.js%00.html",
            "/nothing",
            &format!("/{}", "x".repeat(5000)),
        ] {
            let answer = site.get(path).await;
            assert_eq!(answer.status, 404, "{path}: {}", answer.head);
            assert!(!answer.text().contains("secret") && !answer.text().contains("hidden"), "{path}");
        }
    }

    #[tokio::test]
    async fn what_is_not_found_is_said_by_the_sites_own_page() {
        let site = Served::new().await;
        assert_eq!(site.get("/nothing").await.text(), "There is no such page.\n");
        site.host().write(Path::new("/site/404.html"), 0o644, b"<h1>lost</h1>").unwrap();
        let lost = site.get("/nothing").await;
        assert_eq!((lost.status, lost.text().as_str()), (404, "<h1>lost</h1>"));
        assert_eq!(lost.header("content-type"), Some("text/html; charset=utf-8"));
        assert_eq!(lost.header("cache-control"), Some("no-cache"));
    }

    #[tokio::test]
    async fn only_reading_is_possible() {
        let site = Served::new().await;
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            assert_eq!(site.ask(&format!("{method} /app.js"), "").await.status, 405, "{method}");
        }
        assert_eq!(site.ask("POST /healthz", "").await.status, 405);
    }

    #[tokio::test]
    async fn a_part_is_served_as_a_part() {
        let site = Served::new().await;
        let part = site.ask("GET /app.js", "Range: bytes=4-8\r\nAccept-Encoding: gzip\r\n").await;
        assert_eq!((part.status, part.text().as_str()), (206, "x = 1"));
        assert_eq!(part.header("content-range"), Some("bytes 4-8/11000"));
        assert_eq!(part.header("content-encoding"), None);
        assert_eq!(site.ask("GET /app.js", "Range: bytes=99999-\r\n").await.status, 416);
        let whole = site.ask("GET /app.js", "Range: bytes=4-8\r\nIf-Range: \"old\"\r\n").await;
        assert_eq!((whole.status, whole.body.len()), (200, 11000));
    }

    #[tokio::test]
    async fn text_is_compressed_for_who_can_read_it() {
        let site = Served::new().await;
        let gzip = "Accept-Encoding: gzip\r\n";
        let small = site.ask("GET /app.js", gzip).await;
        assert_eq!(small.header("content-encoding"), Some("gzip"));
        assert!(small.body.len() < 1000, "{}", small.body.len());
        assert!(small.header("vary").unwrap().contains("accept-encoding"));
        assert!(small.header("etag").unwrap().starts_with("W/\""), "{}", small.head);
        let plain = site.get("/app.js").await;
        assert_eq!((plain.header("content-encoding"), plain.body.len()), (None, 11000));
        assert_eq!(site.ask("GET /logo.png", gzip).await.header("content-encoding"), None);
        site.host().write(Path::new("/site/app.js.gz"), 0o644, b"made beforehand").unwrap();
        assert_eq!(site.ask("GET /app.js", gzip).await.text(), "made beforehand");
    }

    #[tokio::test]
    async fn an_unchanged_file_is_not_sent_twice() {
        let site = Served::new().await;
        for accept in ["", "Accept-Encoding: gzip\r\n"] {
            let first = site.ask("GET /app.js", accept).await;
            let (tag, date) = (first.header("etag").unwrap(), first.header("last-modified").unwrap());
            for header in [format!("If-None-Match: {tag}\r\n"), format!("If-Modified-Since: {date}\r\n")] {
                let again = site.ask("GET /app.js", &format!("{accept}{header}")).await;
                assert_eq!((again.status, again.body.len()), (304, 0), "{header}");
            }
            // Within the same second, and of the same length.
            let other = "let y = 2;\n".repeat(1000);
            site.host().write(Path::new("/site/app.js"), 0o644, other.as_bytes()).unwrap();
            let changed = site.ask("GET /app.js", &format!("{accept}If-None-Match: {tag}\r\n")).await;
            assert_eq!(changed.status, 200);
        }
    }

    #[tokio::test]
    async fn a_browser_keeps_what_cannot_change() {
        for (path, keep) in [
            ("/", "no-cache"),
            ("/guide/", "no-cache"),
            ("/guide/index.html", "no-cache"),
            ("/app.js", "no-cache"),
            ("/decade.js", "no-cache"),
            ("/app.0a1b2c3d4e.js", "max-age=31536000, immutable"),
            ("/assets/main-0a1b2c3d.css", "max-age=31536000, immutable"),
            ("/logo.png", "max-age=3600"),
        ] {
            assert_eq!(freshness(path), keep, "{path}");
        }
        let site = Served::new().await;
        let kept = site.get("/app.0a1b2c3d4e.js").await;
        assert_eq!(kept.header("cache-control"), Some("max-age=31536000, immutable"));
        assert_eq!(site.get("/lost.0a1b2c3d4e.js").await.header("cache-control"), Some("no-cache"));
    }

    #[tokio::test]
    async fn a_site_built_later_is_served_when_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(attend_until(listener, app(&dir.path().join("current")), std::future::pending()));
        let site = Served { dir, at };
        assert_eq!(site.get("/").await.status, 404);
        assert_eq!(site.get("/healthz").await.status, 503);
        for version in ["one", "two"] {
            host.write(&Path::new("/").join(version).join("index.html"), 0o644, version.as_bytes()).unwrap();
            host.link(Path::new("/current"), Path::new(version)).unwrap();
            assert_eq!(site.get("/").await.text(), version);
        }
        assert_eq!(site.get("/healthz").await.status, 200);
    }

    #[tokio::test]
    async fn told_to_stop_it_ends_the_answer_it_is_giving() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        host.write(Path::new("/big"), 0o644, &vec![b'x'; 16 << 20]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let served = tokio::spawn(attend_until(listener, app(dir.path()), async { drop(stopped.await) }));
        let mut reader = TcpStream::connect(at).await.unwrap();
        reader.write_all(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut first = [0; 1024];
        reader.read_exact(&mut first).await.unwrap();
        stop.send(()).unwrap();
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).await.unwrap();
        assert!(rest.len() + first.len() > 16 << 20, "{}", rest.len());
        served.await.unwrap().unwrap();
        assert!(TcpStream::connect(at).await.is_err());
    }
}
