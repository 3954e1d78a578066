//! Logins from every place, refused ones, and helpers.
