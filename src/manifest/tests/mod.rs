mod decode;
mod desired;
mod keep;
mod stability;
