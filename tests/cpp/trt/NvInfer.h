// The part of TensorRT's interface that csrc/backend/trt_graph.cpp uses, for machines without its headers. An engine's
// bytes are the name of a toy stage that test_trt.cpp computes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace nvinfer1 {

struct Dims {
    int32_t nbDims;
    int64_t d[8];
};
enum class DataType : int32_t { kFLOAT, kHALF, kINT8, kINT32, kBOOL, kUINT8, kFP8, kBF16, kINT64 };
enum class TensorIOMode : int32_t { kNONE, kINPUT, kOUTPUT };
enum class OptProfileSelector : int32_t { kMIN, kOPT, kMAX };

class ILogger {
public:
    enum class Severity : int32_t { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
    virtual ~ILogger() = default;
    virtual void log(Severity severity, const char* text) noexcept = 0;
};

class IExecutionContext {
public:
    explicit IExecutionContext(std::string stage) : stage_(std::move(stage)) {}
    bool setOptimizationProfileAsync(int32_t profile, cudaStream_t stream);
    bool setInputShape(const char* name, const Dims& sizes);
    Dims getTensorShape(const char* name) const;
    bool setTensorAddress(const char* name, void* address);
    bool enqueueV3(cudaStream_t stream);

private:
    void compute();
    std::string stage_;
    int32_t profile_ = 0;
    std::map<std::string, Dims> shapes_;
    std::map<std::string, void*> addresses_;
};

class ICudaEngine {
public:
    explicit ICudaEngine(std::string stage) : stage_(std::move(stage)) {}
    int32_t getNbIOTensors() const;
    const char* getIOTensorName(int32_t index) const;
    TensorIOMode getTensorIOMode(const char* name) const;
    DataType getTensorDataType(const char* name) const;
    Dims getTensorShape(const char* name) const;
    Dims getProfileShape(const char* name, int32_t profile, OptProfileSelector which) const;
    IExecutionContext* createExecutionContext();

private:
    std::string stage_;
};

class IRuntime {
public:
    explicit IRuntime(ILogger& log) : log_(log) {}
    ICudaEngine* deserializeCudaEngine(const void* bytes, size_t size);

private:
    ILogger& log_;
};

IRuntime* createInferRuntime(ILogger& log);

}  // namespace nvinfer1

extern "C" int32_t getInferLibVersion() noexcept;
