//! Masks on rows, copies, errors and notices.
//!
//! A column is masked by where PostgreSQL says it comes from; what it calls an expression (no origin)
//! is masked by its name, if the operation touches a masked table, and by patterns. A value whose type
//! can't carry a mask becomes NULL. Where the origin can't be told, the value becomes NULL as well.

mod message;
mod rows;
#[cfg(test)]
mod tests;
mod value;

pub use self::{
    message::{
        copy_out_refusal, mask_copy_data, mask_fields, mask_function_result, mask_notification,
    },
    rows::RowMask,
};
