mod decode;
mod desired;
mod stability;
