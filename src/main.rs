mod host;
mod hq;
mod journal;
mod web;

fn main() {}
