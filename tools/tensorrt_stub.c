/* What TensorRT's Python bindings look for when they are imported. With it their names and signatures can be read on
   any machine; nothing in it does anything, so no object of TensorRT's can be made. */
#define NOTHING(name) \
    void* name(void) { return 0; }

NOTHING(createInferBuilder_INTERNAL)
NOTHING(createInferRefitter_INTERNAL)
NOTHING(createInferRuntime_INTERNAL)
NOTHING(createNvOnnxParser_INTERNAL)
NOTHING(createNvOnnxParserRefitter_INTERNAL)
NOTHING(getBuilderPluginRegistry)
NOTHING(getPluginRegistry)
NOTHING(getNvOnnxParserVersion)
NOTHING(initLibNvInferPlugins)
