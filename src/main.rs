mod host;
mod journal;

fn main() {}
