//! The program `interceptor`: sockets, kernel, storage, people.
pub mod cli;
pub mod kernel;
