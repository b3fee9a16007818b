mod host;
mod hq;
mod journal;

fn main() {}
