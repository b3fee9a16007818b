mod host;
mod hq;
mod journal;
mod tls;

fn main() {}
