// Declarations of what the zip's C++ runner uses of onnxruntime's public C++ API, so that the runner can be compiled
// where the real headers are not installed. It is not linked: only the compiler's word is wanted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };
enum ONNXTensorElementDataType {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
};
struct OrtMemoryInfo;

namespace Ort {

struct Env {
  Env(OrtLoggingLevel level, const char* id);
};

struct SessionOptions {
  SessionOptions& SetIntraOpNumThreads(int count);
};

struct RunOptions {
  explicit RunOptions(std::nullptr_t);
};

struct MemoryInfo {
  static MemoryInfo CreateCpu(OrtAllocatorType kind, OrtMemType type);
  operator const OrtMemoryInfo*() const;
};

struct TensorTypeAndShapeInfo {
  size_t GetElementCount() const;
  ONNXTensorElementDataType GetElementType() const;
};

struct Value {
  explicit Value(std::nullptr_t);
  Value(Value&&);
  Value& operator=(Value&&);
  Value(const Value&) = delete;
  template <typename T>
  static Value CreateTensor(const OrtMemoryInfo* info, T* data, size_t count, const int64_t* shape, size_t rank);
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const;
  const void* GetTensorRawData() const;
};

struct Session {
  Session(const Env& env, const char* path, const SessionOptions& options);
  std::vector<Value> Run(const RunOptions& options, const char* const* input_names, const Value* inputs,
                         size_t input_count, const char* const* output_names, size_t output_count);
};

}  // namespace Ort
