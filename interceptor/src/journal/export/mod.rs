//! What is on record, for other programs and for people who have none: a file a format.

mod har;
mod jsonl;

pub use self::{
    har::Har,
    jsonl::{Filter, Lines, export_jsonl, parameter, to_json},
};
