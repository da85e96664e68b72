//! Archives that mean harm, stored in tests/corpus/hostile: each ends in an error that says what to do, or
//! in a disk that is fine, within bounded time and memory.
