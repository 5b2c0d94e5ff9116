//! The policies in force: read, validated, swapped when their files change.
